"""What every verb is given, and what every verb takes: the API, the output, and `--json`."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from openai import OpenAI

from luthier_cli.connection import find_connection
from luthier_cli.output import Output

TIMEOUT_S = 600.0


@dataclass
class Session:
    """How to show things, and the API once a verb asks for it."""

    output: Output
    base_url: str | None
    home: Path | None

    @cached_property
    def client(self) -> OpenAI:
        found = find_connection(os.environ, base_url=self.base_url, home=self.home)
        return OpenAI(base_url=found.base_url, api_key=found.key, admin_api_key=found.key, timeout=TIMEOUT_S)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


pass_session = click.make_pass_decorator(Session)


def _as_json(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        context.ensure_object(Session).output.as_json = True


class Verb(click.Command):
    """A command that takes `--json` behind its own words too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        told = "Show the API's own objects."
        self.params.append(click.Option(["--json"], is_flag=True, expose_value=False, callback=_as_json, help=told))


class Verbs(click.Group):
    """A group of verbs."""

    command_class = Verb
