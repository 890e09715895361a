"""`luthier models`."""

import click

from luthier_cli.session import Session, Verbs, pass_session

COLUMNS = ("id", "owned_by", "created", "x_base", "x_job")


@click.group(cls=Verbs)
def models() -> None:
    """Models: what jobs made, and the bases."""


@models.command("list")
@pass_session
def list_(session: Session) -> None:
    """List models: tuned ones first."""
    session.output.table(list(session.client.models.list()), COLUMNS)


@models.command()
@click.argument("model")
@pass_session
def delete(session: Session, *, model: str) -> None:
    """Delete a tuned model."""
    session.output.thing(session.client.models.delete(model), ("id", "deleted"))
