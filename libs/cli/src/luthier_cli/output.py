"""What the terminal shows: a table, or JSON of the very objects; and every error as one line."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from openai import APIConnectionError, APIStatusError
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
WIDE = 200


class Output:
    """Shows things in the form that was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._console = Console(highlight=False, soft_wrap=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=WIDE)

    def table(self, items: Sequence[Any], columns: Sequence[str]) -> None:
        """A list: the columns of each item, or with --json the whole items."""
        rows = [as_row(item) for item in items]
        if self.as_json:
            click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(shown(column, row.get(column))) for column in columns))
        self._console.print(table)

    def thing(self, item: Any, fields: Sequence[str]) -> None:
        """One object: its fields line by line, or with --json the whole object."""
        row = as_row(item)
        if self.as_json:
            click.echo(json.dumps(row, indent=2, ensure_ascii=False))
            return
        width = max(map(len, fields))
        for field in fields:
            if row.get(field) not in (None, [], ""):
                click.echo(f"{field:<{width}}  {shown(field, row[field])}")

    def line(self, item: Any, text: str) -> None:
        """One of many things that come one after the other: a line of text, or with --json a line of JSON."""
        click.echo(json.dumps(as_row(item), ensure_ascii=False) if self.as_json else harmless(text))

    def note(self, text: str) -> None:
        """A word beside the answer, out of its way."""
        click.echo(text, err=True)


def as_row(item: Any) -> Row:
    """An object of the openai package, or one that came as plain JSON."""
    if isinstance(item, BaseModel):
        return item.model_dump(mode="json")
    return dict(item)


def shown(field: str, value: Any) -> str:
    """A value as people read it. Times are UTC."""
    if value is None:
        return "-"
    if field.endswith("_at") or field == "created":
        return f"{datetime.fromtimestamp(int(value), UTC):%Y-%m-%d %H:%M:%S}"
    if field == "error" and isinstance(value, Mapping):
        return harmless(f"{value.get('code')}: {value.get('message')}")
    if isinstance(value, list):
        return harmless(",".join(map(str, value)))
    if isinstance(value, Mapping):
        return harmless(" ".join(f"{name}={part}" for name, part in value.items()))
    return harmless(str(value))


def harmless(text: str) -> str:
    """A text of others without what a terminal obeys."""
    return "".join(char if char in "\n\t" or unicodedata.category(char) != "Cc" else "?" for char in text)


def error_line(error: APIStatusError | APIConnectionError) -> str:
    """The error with its stable code and the id under which the server's logs hold it."""
    if isinstance(error, APIStatusError):
        message = error.message
        if isinstance(error.body, Mapping):
            message = harmless(str(error.body.get("message") or message))
        facts = [
            f"code {error.code or error.status_code}",
            *([f"request {error.request_id}"] if error.request_id else []),
        ]
        return f"{message} ({', '.join(facts)})"
    return f"{error.request.url.host}:{error.request.url.port} does not answer (code connection_error)"
