"""`luthier files`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from luthier_cli.session import Session, Verbs, pass_session

COLUMNS = ("id", "filename", "bytes", "purpose", "status", "created_at")


@click.group(cls=Verbs)
def files() -> None:
    """Files."""


@files.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--purpose", default="fine-tune", show_default=True)
@pass_session
def upload(session: Session, *, paths: tuple[Path, ...], purpose: str) -> None:
    """Upload files."""
    _show_each(session, (upload_file(session, path, purpose) for path in paths), COLUMNS)


@files.command("list")
@click.option("--purpose")
@pass_session
def list_(session: Session, *, purpose: str | None) -> None:
    """List files, newest first."""
    found = session.client.files.list(purpose=purpose) if purpose else session.client.files.list()
    session.output.table(list(found), COLUMNS)


@files.command()
@click.argument("file_ids", nargs=-1, required=True)
@pass_session
def delete(session: Session, *, file_ids: tuple[str, ...]) -> None:
    """Delete files."""
    _show_each(session, (session.client.files.delete(file_id) for file_id in file_ids), ("id", "deleted"))


def upload_file(session: Session, path: Path, purpose: str) -> Any:
    """The file object. The bytes are read as they are sent: a file may be larger than the memory."""
    with path.open("rb") as content:
        return session.client.files.create(file=(path.name, content), purpose=purpose)  # type: ignore[arg-type]


def _show_each(session: Session, made: Iterator[Any], columns: tuple[str, ...]) -> None:
    """What was done is shown, also when a later one fails: nobody does it a second time."""
    done: list[Any] = []
    try:
        done.extend(made)
    finally:
        if done:
            session.output.table(done, columns)
