"""`luthier keys`: API keys of projects. A key's value is shown when it is made and never again."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from openai import NotFoundError, OpenAI

from luthier_cli.connection import UsageError
from luthier_cli.projects import the_project
from luthier_cli.session import Session, Verbs, pass_session

COLUMNS = ("id", "name", "scopes", "created_at", "expires_at", "last_used_at")
FIELDS = (*COLUMNS, "strict", "rate_limit", "value")
ONCE = "This is the only time that the value is shown."
PROJECT = click.option("--project", help="The project's id; not needed where there is only one.")


@click.group(cls=Verbs)
def keys() -> None:
    """API keys."""


@keys.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, help="What the key may do; give it several times.")
@PROJECT
@click.option("--expires-in", type=click.IntRange(min=1), metavar="SECONDS", help="Default: never.")
@click.option("--user", "user_id", help="Id of the user that the key belongs to.")
@click.option("--rate-limit", type=click.IntRange(min=1), metavar="N", help="Requests a minute. Default: the server's.")
@click.option("--strict", is_flag=True, help="For clients that parse strictly: never answer with the status paused.")
@pass_session
def create(
    session: Session,
    *,
    name: str,
    scopes: Sequence[str],
    project: str | None,
    expires_in: int | None,
    user_id: str | None,
    rate_limit: int | None,
    strict: bool,
) -> None:
    """Make a key."""
    body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
    body |= {"expires_in_seconds": expires_in} if expires_in else {}
    body |= {"user_id": user_id} if user_id else {}
    body |= {"rate_limit": rate_limit} if rate_limit else {}
    body |= {"strict": True} if strict else {}
    made = _post(session.client, f"/organization/projects/{the_project(session.client, project)}/api_keys", body)
    session.output.thing(made, FIELDS)
    session.output.note(ONCE)


@keys.command("list")
@PROJECT
@pass_session
def list_(session: Session, *, project: str | None) -> None:
    """List the keys of a project, newest first."""
    found = session.client.admin.organization.projects.api_keys.list(the_project(session.client, project), limit=100)
    session.output.table(list(found), COLUMNS)


@keys.command()
@click.argument("key_id")
@click.option(
    "--keep-old-for",
    type=click.IntRange(0, 86_400),
    default=0,
    metavar="SECONDS",
    help="How long the value before this one is still accepted (default 0, at most a day).",
)
@PROJECT
@pass_session
def rotate(session: Session, *, key_id: str, keep_old_for: int, project: str | None) -> None:
    """Give a key a new value."""
    place = f"/organization/projects/{_project_of(session.client, key_id, project)}/api_keys/{key_id}/rotate"
    session.output.thing(_post(session.client, place, {"keep_old_for_seconds": keep_old_for}), FIELDS)
    session.output.note(ONCE)


@keys.command()
@click.argument("key_id")
@PROJECT
@pass_session
def revoke(session: Session, *, key_id: str, project: str | None) -> None:
    """End a key for good."""
    project_id = _project_of(session.client, key_id, project)
    ended = session.client.admin.organization.projects.api_keys.delete(key_id, project_id=project_id)
    session.output.thing(ended, ("id", "deleted"))


def _project_of(client: OpenAI, key_id: str, named: str | None) -> str:
    """The project that was named, or the one that has this key."""
    if named is not None:
        return named
    for project in client.admin.organization.projects.list(include_archived=True, limit=100):
        try:
            client.admin.organization.projects.api_keys.retrieve(key_id, project_id=project.id)
        except NotFoundError:
            continue
        return project.id
    raise UsageError(f"no project of the organization has the key {key_id}")


def _post(client: OpenAI, place: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A route that OpenAI does not have."""
    answer: object = client.post(place, body=body, cast_to=object)
    if not isinstance(answer, Mapping):
        raise UsageError(f"{client.base_url} is no Luthier")
    return answer
