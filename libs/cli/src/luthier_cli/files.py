"""`luthier files`."""

from pathlib import Path

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
    made = [session.client.files.create(file=path, purpose=purpose) for path in paths]  # type: ignore[arg-type]
    session.output.table(made, COLUMNS)


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
    session.output.table([session.client.files.delete(file_id) for file_id in file_ids], ("id", "deleted"))
