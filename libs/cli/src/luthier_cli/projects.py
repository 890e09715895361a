"""`luthier projects`, and which project a verb means when none is named."""

import click
from openai import OpenAI

from luthier_cli.connection import UsageError
from luthier_cli.session import Session, Verbs, pass_session

COLUMNS = ("id", "name", "status", "created_at", "archived_at")


def the_project(client: OpenAI, named: str | None) -> str:
    """The project that was named, or the only one that there is."""
    if named is not None:
        return named
    found = [project.id for project in client.admin.organization.projects.list(limit=100)]
    if len(found) != 1:
        raise UsageError(f"name one of the organization's projects with --project: {', '.join(found)}")
    return found[0]


@click.group(cls=Verbs)
def projects() -> None:
    """Projects of the organization."""


@projects.command()
@click.argument("name")
@pass_session
def create(session: Session, name: str) -> None:
    """Make a project."""
    session.output.thing(session.client.admin.organization.projects.create(name=name), COLUMNS)


@projects.command("list")
@click.option("--archived", is_flag=True, help="Archived ones too.")
@pass_session
def list_(session: Session, *, archived: bool) -> None:
    """List projects, newest first."""
    found = session.client.admin.organization.projects.list(include_archived=archived, limit=100)
    session.output.table(list(found), COLUMNS)


@projects.command()
@click.argument("project_id")
@pass_session
def archive(session: Session, project_id: str) -> None:
    """Archive a project: its keys stop working, for good."""
    session.output.thing(session.client.admin.organization.projects.archive(project_id), COLUMNS)
