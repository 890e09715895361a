"""`luthier jobs`."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx2
from openai import OpenAI, Stream
from openai.types.fine_tuning import FineTuningJobEvent

from luthier_cli.connection import UsageError
from luthier_cli.files import upload_file
from luthier_cli.output import shown
from luthier_cli.session import Session, Verbs, pass_session

COLUMNS = ("id", "status", "model", "fine_tuned_model", "created_at", "trained_tokens")
FIELDS = (
    *("id", "status", "model", "fine_tuned_model", "created_at", "estimated_finish", "finished_at", "trained_tokens"),
    *("training_file", "validation_file", "hyperparameters", "seed", "metadata", "result_files", "error"),
)
PAGE = 100
LAST = "fine_tuning.job.events.done"
DATA = "data: "
COME_BACK_S = 1.0
COME_BACK_TRIES = 8


@click.group(cls=Verbs)
def jobs() -> None:
    """Fine-tuning jobs."""


@jobs.command()
@click.argument("model")
@click.argument("training_file")
@click.option("--validation-file", help="A file's id, or a path that is uploaded first.")
@click.option("--suffix", help="Stands in the tuned model's name.")
@click.option("--seed", type=int)
@click.option("-p", "--hyperparameter", "hyperparameters", multiple=True, metavar="NAME=VALUE")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
@pass_session
def create(
    session: Session,
    *,
    model: str,
    training_file: str,
    validation_file: str | None,
    suffix: str | None,
    seed: int | None,
    hyperparameters: tuple[str, ...],
    metadata: tuple[str, ...],
) -> None:
    """Make a job. TRAINING_FILE is a file's id, or a path that is uploaded first."""
    chosen = {name: number(value) for name, value in pairs(hyperparameters).items()}
    more: dict[str, Any] = {
        "suffix": suffix,
        "seed": seed,
        "metadata": pairs(metadata) or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}} if chosen else None,
        "validation_file": _file_id(session, validation_file) if validation_file else None,
    }
    job = session.client.fine_tuning.jobs.create(
        model=model,
        training_file=_file_id(session, training_file),
        extra_body={name: value for name, value in more.items() if value is not None},
    )
    session.output.thing(job, FIELDS)


@jobs.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@pass_session
def list_(session: Session, *, limit: int) -> None:
    """List jobs, newest first."""
    found = session.client.fine_tuning.jobs.list(limit=min(limit, PAGE))
    session.output.table([job for job, _ in zip(found, range(limit), strict=False)], COLUMNS)


@jobs.command()
@click.argument("job_id")
@pass_session
def get(session: Session, *, job_id: str) -> None:
    """Look at a job."""
    session.output.thing(session.client.fine_tuning.jobs.retrieve(job_id), FIELDS)


@jobs.command()
@click.argument("job_id")
@click.option("--follow", is_flag=True, help="Wait for more, until the job has ended.")
@pass_session
def events(session: Session, *, job_id: str, follow: bool) -> None:
    """Show what happened to a job, oldest first."""
    for event in _follow(session.client, job_id) if follow else _so_far(session.client, job_id):
        session.output.line(event, f"{shown('created_at', event.created_at)}  {event.level:<5}  {event.message}")


@jobs.command()
@click.argument("job_id")
@pass_session
def pause(session: Session, *, job_id: str) -> None:
    """Pause a job; it gives its slots back."""
    session.output.thing(session.client.fine_tuning.jobs.pause(job_id), FIELDS)


@jobs.command()
@click.argument("job_id")
@pass_session
def resume(session: Session, *, job_id: str) -> None:
    """Let a paused job go on."""
    session.output.thing(session.client.fine_tuning.jobs.resume(job_id), FIELDS)


@jobs.command()
@click.argument("job_id")
@pass_session
def cancel(session: Session, *, job_id: str) -> None:
    """End a job."""
    session.output.thing(session.client.fine_tuning.jobs.cancel(job_id), FIELDS)


@jobs.command()
@click.argument("job_id")
@click.option("--with-model", is_flag=True, help="Delete the tuned model too; it is kept otherwise.")
@pass_session
def delete(session: Session, *, job_id: str, with_model: bool) -> None:
    """Delete a job that has ended, with its checkpoints and metrics."""
    place, asked = f"/fine_tuning/jobs/{quote(job_id, safe='')}", {"delete_model": with_model}
    gone: Any = session.client.delete(place, options={"params": asked}, cast_to=object)
    session.output.thing(gone, ("id", "deleted"))


def pairs(given: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE, as often as it was given."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{text} is not NAME=VALUE")
        found[name] = value
    return found


def number(text: str) -> object:
    """A hyperparameter as JSON has it (3, 0.5, true), or else the text itself (auto)."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _file_id(session: Session, named: str) -> str:
    path = Path(named)
    if not path.is_file():
        return named
    file = upload_file(session, path, "fine-tune")
    session.output.note(f"uploaded {named} as {file.id}")
    return str(file.id)


def _follow(client: OpenAI, job_id: str) -> Iterator[FineTuningJobEvent]:
    """Events as they come, also over broken connections, until the server says that the last one was told."""
    last: str | None = None
    while True:
        try:
            for told in _stream(client, job_id, last):
                if told["object"] == LAST:
                    return
                event = FineTuningJobEvent.model_validate(told)
                last = event.id
                yield event
        except httpx2.TransportError:
            pass
        time.sleep(COME_BACK_S)
        client = client.with_options(max_retries=COME_BACK_TRIES)


def _stream(client: OpenAI, job_id: str, last: str | None) -> Iterator[Mapping[str, Any]]:
    """The data of server-sent events. Stream's own reader takes a comment between two events for an empty event."""
    stream: Stream[FineTuningJobEvent] = client.get(
        f"/fine_tuning/jobs/{quote(job_id, safe='')}/events/stream",
        options={"params": {"after": last} if last else {}},
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=Stream[FineTuningJobEvent],
    )
    with stream:
        for line in stream.response.iter_lines():
            if line.startswith(DATA):
                yield json.loads(line.removeprefix(DATA))


def _so_far(client: OpenAI, job_id: str) -> Iterable[FineTuningJobEvent]:
    """Oldest first; the API lists the newest first."""
    return reversed(list(client.fine_tuning.jobs.list_events(job_id, limit=PAGE)))
