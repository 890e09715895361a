"""`python -m luthier_api.admin`: what only operators do, in the database itself: organisations, keys after a lockout,
archived projects, the event list, backups, machines that are gone.

It reads the settings of the api room (`LUTHIER_*`) and must see the same pepper as the running api: a key that is
hashed with another one never works.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from luthier_api import backup_admin, event_admin
from luthier_api.audit import verify
from luthier_api.domain import Scope
from luthier_api.first_key import read_pepper
from luthier_api.keys import COLLECTION, Grant, KeyRing
from luthier_api.node_admin import forget_node, list_nodes
from luthier_api.project_admin import erase_project
from luthier_api.services.files import longest_request_s
from luthier_api.settings import ApiSettings
from luthier_api.store.tenancy import KEY_FIELDS, PROJECTS, insert
from luthier_api.wire.tenancy import KEY_PREFIX
from luthier_common.contract.ids import new_id
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.mongo import Database
from luthier_common.kit.servers import open_database

ORGS = "orgs"
ORG_PREFIX = "org-"
PROJECT_PREFIX = "proj-"
_BACKUP_VERBS = {
    "create": "make a backup in a new folder, while everything runs",
    "verify": "read a backup again and compare its hashes",
    "restore": "put a backup into an empty database and object store; all services stopped",
}


class OperatorError(LuthierError):
    """What the operator asked for cannot be done; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        settings = ApiSettings()
        asyncio.run(_run(settings, asked))
    except ValidationError as error:
        missing = ", ".join(f"LUTHIER_{str(found['loc'][0]).upper()}" for found in error.errors())
        sys.stderr.write(f"luthier admin: set {missing} as the api has it\n")
        return 1
    except LuthierError as error:
        sys.stderr.write(f"luthier admin: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"luthier admin: {error.strerror or error}: {error.filename or 'no file'}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m luthier_api.admin", description="What only operators do.")
    groups = parser.add_subparsers(dest="group", required=True)
    orgs = groups.add_parser("orgs", help="organisations").add_subparsers(dest="verb", required=True)
    made = orgs.add_parser("create", help="make an organisation with a project; its admin key is printed once")
    made.add_argument("name")
    orgs.add_parser("list", help="list organisations")
    keys = groups.add_parser("keys", help="keys, after a lockout").add_subparsers(dest="verb", required=True)
    key = keys.add_parser("create", help="make a key; its value is printed once")
    key.add_argument("--project", required=True, help="id of the project that the key belongs to")
    key.add_argument("--name", default="operator")
    key.add_argument("--scope", action="append", choices=[str(scope) for scope in Scope], help="default: admin")
    key.add_argument("--expires-in", type=int, metavar="SECONDS")
    key.add_argument("--rate-limit", type=_at_least_one, metavar="N", help="requests a minute; default: the api's")
    listed = keys.add_parser("list", help="list the keys that are not revoked")
    listed.add_argument("--project")
    keys.add_parser("revoke", help="revoke a key").add_argument("key_id")
    projects = groups.add_parser("projects", help="archived projects").add_subparsers(dest="verb", required=True)
    erased = projects.add_parser("erase", help="delete all that an archived project has stored; there is no way back")
    erased.add_argument("project")
    log = groups.add_parser("audit", help="the audit log").add_subparsers(dest="verb", required=True)
    log.add_parser("verify", help="compute all chains again; names the first row that was changed or removed")
    events = groups.add_parser("events", help="event list and topics").add_subparsers(dest="verb", required=True)
    events.add_parser("verify", help="compare the event list with the topics, as far back as these reach")
    events.add_parser("rebuild", help="fill the event list from the topics")
    events.add_parser("republish", help="fill the topics from the event list")
    nodes = groups.add_parser("nodes", help="trainers and engines").add_subparsers(dest="verb", required=True)
    nodes.add_parser("list", help="list nodes, with their phases and held slots")
    gone = nodes.add_parser("forget", help="a lost machine is gone for good: say that it left, and free its slots")
    gone.add_argument("name")
    backup = groups.add_parser("backup", help="database and objects").add_subparsers(dest="verb", required=True)
    for verb, text in _BACKUP_VERBS.items():
        backup.add_parser(verb, help=text).add_argument("folder", type=Path)
    return parser


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


async def _run(settings: ApiSettings, asked: argparse.Namespace) -> None:
    if asked.group == "events":
        await event_admin.run(settings, asked.verb)
        return
    if asked.group == "backup":
        await backup_admin.run(settings, asked.verb, asked.folder)
        return
    async with open_database(settings) as db:
        deeds: dict[tuple[str, str], Callable[[], Awaitable[None]]] = {
            ("orgs", "create"): lambda: create_org(db, _ring(db, settings), asked.name),
            ("orgs", "list"): lambda: list_orgs(db),
            ("keys", "create"): lambda: create_key(db, _ring(db, settings), asked),
            ("keys", "list"): lambda: list_keys(db, asked.project),
            ("keys", "revoke"): lambda: revoke_key(_ring(db, settings), asked.key_id),
            ("projects", "erase"): lambda: erase_project(
                db, asked.project, longest_request_s=longest_request_s(settings)
            ),
            ("audit", "verify"): lambda: verify_audit(db),
            ("nodes", "list"): lambda: list_nodes(db),
            ("nodes", "forget"): lambda: forget_node(db, asked.name),
        }
        await deeds[asked.group, asked.verb]()


async def create_org(db: Database, ring: KeyRing, name: str) -> None:
    """An organisation with one project and one admin key, whose value is printed here and nowhere else."""
    now = datetime.now(UTC)
    org, project = new_id(ORG_PREFIX, now), new_id(PROJECT_PREFIX, now)
    await insert(db, ORGS, org, {"name": name})
    await insert(db, PROJECTS, project, {"org": org, "name": "default", "archived_at": None})
    issued = await ring.issue(Grant("admin", frozenset({str(Scope.ADMIN)}), org, project, created_by="operator"))
    _tell(f"organization  {org}", f"project       {project}", f"admin key     {issued.value}")


async def list_orgs(db: Database) -> None:
    async for org in db[ORGS].find({}).sort("_id", 1):
        projects = await db[PROJECTS].find({"org": org["_id"]}, {"_id": 1}).sort("_id", 1).to_list(None)
        _tell(f"{org['_id']}  {org['name']}  {' '.join(project['_id'] for project in projects)}")


async def create_key(db: Database, ring: KeyRing, asked: argparse.Namespace) -> None:
    project = await db[PROJECTS].find_one({"_id": asked.project})
    if project is None or project.get("archived_at"):
        raise OperatorError(f"there is no active project {asked.project}")
    scopes = frozenset(asked.scope or [str(Scope.ADMIN)])
    grant = Grant(
        name=asked.name,
        scopes=scopes,
        org=project["org"],
        project=project["_id"],
        expires_in_s=asked.expires_in,
        rate_limit=asked.rate_limit,
        created_by="operator",
    )
    issued = await ring.issue(grant)
    _tell(f"id   {KEY_PREFIX}{issued.row['_id']}", f"key  {issued.value}")


async def list_keys(db: Database, project: str | None) -> None:
    query = {"revoked": False} | ({} if project is None else {"project": project})
    async for key in db[COLLECTION].find(query, KEY_FIELDS).sort([("org", 1), ("_id", 1)]):
        until = f"until {key['expires_at']:%Y-%m-%d %H:%M} UTC" if key.get("expires_at") else "does not expire"
        shown = (KEY_PREFIX + key["_id"], key["org"], key["project"], key["name"], until, ",".join(key["scopes"]))
        _tell("  ".join(shown))


async def revoke_key(ring: KeyRing, key_id: str) -> None:
    if not await ring.revoke({"_id": key_id.removeprefix(KEY_PREFIX)}):
        raise OperatorError(f"there is no key {key_id} that could be revoked")
    _tell("revoked; running api processes refuse it within LUTHIER_KEY_CACHE_S")


async def verify_audit(db: Database) -> None:
    found = await verify(db)
    if found.broken is not None:
        raise OperatorError(f"the audit log is broken at {found.broken}: {found.why}")
    _tell(f"{found.num_rows} rows in {found.num_chains} chains are as they were written")


def _ring(db: Database, settings: ApiSettings) -> KeyRing:
    if settings.pepper is not None:
        pepper = settings.pepper.get_secret_value().encode()
    elif (settings.home / "pepper").exists():
        pepper = read_pepper(settings.home)
    else:
        raise OperatorError(f"no pepper in {settings.home}: set LUTHIER_HOME or LUTHIER_PEPPER as the api has it")
    return KeyRing(db, pepper, cache_s=0)


def _tell(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
