"""Which project may call which model of another one, inside one organisation."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from luthier_api.domain import Page
from luthier_api.store.repository import Repository
from luthier_common.kit.mongo import AFTER, Database, Doc, DuplicateKeyError

COLLECTION = "checkpoint_permissions"


async def unknown_projects(repository: Repository, project_ids: Sequence[str]) -> list[str]:
    """Those that are no open projects of this organisation, in the order given."""
    query: Doc = {"_id": {"$in": list(project_ids)}, "org": repository.principal.org, "archived_at": None}
    known = {project["_id"] async for project in repository.db["projects"].find(query, {"_id": 1})}
    return [project for project in project_ids if project not in known]


async def grant(repository: Repository, permission_id: str, name: str, project: str, now: datetime) -> Doc:
    """The permission of a project to call a model of this one: a new one, or the one that it has."""
    rows, principal = repository.db[COLLECTION], repository.principal
    key: Doc = {"org": principal.org, "name": name, "project": project}
    first = {"_id": permission_id, "owner_project": principal.project, "key_id": principal.key_id, "created_at": now}
    granted = None
    with suppress(DuplicateKeyError):
        granted = await rows.find_one_and_update(key, {"$setOnInsert": first}, upsert=True, return_document=AFTER)
    granted = granted or await rows.find_one(key)
    assert granted is not None
    return granted


async def list_granted(repository: Repository, name: str, page: Page, project: str | None) -> list[Doc]:
    """One more than the page holds, if there are more."""
    query = _mine(repository, name) | ({} if project is None else {"project": project})
    if page.after is not None:
        query["_id"] = {"$gt" if page.ascending else "$lt": page.after}
    found = repository.db[COLLECTION].find(query).sort("_id", 1 if page.ascending else -1)
    return await found.limit(page.limit + 1).to_list(page.limit + 1)


async def revoke(repository: Repository, name: str, permission_id: str) -> bool:
    """False when there was no such permission."""
    gone = await repository.db[COLLECTION].delete_one({"_id": permission_id, **_mine(repository, name)})
    return bool(gone.deleted_count)


async def revoke_all(repository: Repository, name: str) -> None:
    await repository.db[COLLECTION].delete_many(_mine(repository, name))


async def revoke_checkpoints(db: Database, job: Doc) -> None:
    """Those for checkpoints of a job that is deleted: their names answer no more."""
    if (model := job.get("model_name")) is None:
        return
    named = {"$regex": rf"^{re.escape(model)}(g\d+)?:ckpt-step-"}
    await db[COLLECTION].delete_many({"org": job["org"], "owner_project": job["project"], "name": named})


async def lender_of(repository: Repository, name: str) -> Repository | None:
    """A view of the project that lets this one call its model: only to read what the model is made of.

    An archived project lends nothing: nobody could take it back.
    """
    principal = repository.principal
    key: Doc = {"org": principal.org, "name": name, "project": principal.project}
    granted = await repository.db[COLLECTION].find_one(key, {"owner_project": 1})
    if granted is None or await _is_archived(repository.db, granted["owner_project"]):
        return None
    return Repository(repository.db, replace(principal, project=granted["owner_project"], end_user=None), "")


async def _is_archived(db: Database, project: str) -> bool:
    return await db["projects"].find_one({"_id": project, "archived_at": {"$ne": None}}, {"_id": 1}) is not None


def _mine(repository: Repository, name: str) -> Doc:
    return {"org": repository.principal.org, "owner_project": repository.principal.project, "name": name}
