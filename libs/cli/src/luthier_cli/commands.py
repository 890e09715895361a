"""The command's entry: options that all verbs share, and the groups of verbs."""

import sys
from pathlib import Path

import click
from openai import APIConnectionError, APIStatusError, OpenAIError

from luthier_cli.chat import chat
from luthier_cli.connection import UsageError
from luthier_cli.files import files
from luthier_cli.jobs import jobs
from luthier_cli.keys import keys
from luthier_cli.models import models
from luthier_cli.output import Output, error_line
from luthier_cli.projects import projects
from luthier_cli.session import Session


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base-url", help="Address of the API (LUTHIER_BASE_URL, default http://127.0.0.1:8000/v1).")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of a Luthier that runs on this machine: its address and its admin key are used.",
)
@click.option("--json", "as_json", is_flag=True, help="Show the API's own objects.")
@click.pass_context
def cli(context: click.Context, *, base_url: str | None, home: Path | None, as_json: bool) -> None:
    """Fine-tune models on your own machines."""
    session = Session(Output(as_json=as_json), base_url, home)
    context.obj = session
    context.call_on_close(session.close)


for verbs in (keys, projects, files, jobs, models, chat):
    cli.add_command(verbs)


def main() -> None:
    """Run the command; every expected failure is one line on stderr and status 1."""
    try:
        cli(standalone_mode=False, prog_name="luthier")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except (APIStatusError, APIConnectionError) as error:
        _fail(error_line(error))
    except (UsageError, OpenAIError, OSError) as error:
        _fail(str(error))


def _fail(text: str) -> None:
    click.echo(f"luthier: {' '.join(text.split())}", err=True)
    sys.exit(1)
