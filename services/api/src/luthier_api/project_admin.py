"""`admin projects erase`: takes away what an archived project has stored, which no key can do any more."""

import secrets
import sys
from datetime import timedelta

from luthier_api.store import END_OF_FILE, release_bytes
from luthier_api.store.deletion import END_OF_JOB, let_go
from luthier_api.store.permissions import COLLECTION as PERMISSIONS
from luthier_api.store.tenancy import PROJECTS
from luthier_api.store.uploads import COLLECTION as UPLOADS
from luthier_api.store.uploads import PENDING
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import Fact, FileDeleted, JobCancelled, JobDeleted, ModelDeleted
from luthier_common.contract.lifecycle import JOB
from luthier_common.journal.advance import Advanced, advance
from luthier_common.kit import ledger
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.migrate import LISTED
from luthier_common.kit.mongo import Database, Doc

ACTOR = Actor(room="api")


class ProjectError(LuthierError):
    """The project cannot be erased, or not yet to its end; the text says why."""


async def erase_project(db: Database, project_id: str, *, longest_request_s: float) -> None:
    """Cancel and delete jobs, delete models, files, uploads, responses and permissions. Done again it does the rest.

    The running api lets the bytes go. What stays is what the deletion of each thing leaves: facts, and documents that
    nobody sees. A request that began before the project was archived may still store something: ProjectError as long as
    there can be one.
    """
    project = await db[PROJECTS].find_one({"_id": project_id})
    if project is None:
        raise ProjectError(f"there is no project {project_id}")
    if not project.get("archived_at"):
        raise ProjectError(f"{project_id} is not archived: its keys could go on storing; archive it first")
    ours: Doc = {"org": project["org"], "project": project_id}
    await _erase_jobs(db, ours)
    await _erase_models(db, ours)
    await _erase_files(db, ours)
    await db[UPLOADS].update_many({**ours, "status": PENDING}, {"$set": {"status": "cancelled", "is_due": True}})
    await db["responses"].delete_many(ours)
    for role in ("project", "owner_project"):
        await db[PERMISSIONS].delete_many({"org": project["org"], role: project_id})
    await _refuse_unfinished(db, project, ours, longest_request_s)
    sys.stdout.write(f"{project_id} is erased; its bytes go within the hour\n")


async def _refuse_unfinished(db: Database, project: Doc, ours: Doc, longest_request_s: float) -> None:
    wanted = {**LISTED, UPLOADS: {"status": "completed", "is_due": True}}
    left = [name for name, listed in wanted.items() if await db[name].find_one({**ours, **listed}, {"_id": 1})]
    if left:
        what = " and ".join(left)
        raise ProjectError(
            f"{project['_id']} is not all erased: some {what} are being finished; do it again in a minute"
        )
    over_at = project["archived_at"] + timedelta(seconds=longest_request_s)
    if await db[PROJECTS].find_one({"_id": project["_id"], "$expr": {"$lt": ["$$NOW", over_at]}}, {"_id": 1}):
        raise ProjectError(
            f"{project['_id']} holds nothing now, but what was asked before it was archived may still be stored: "
            f"do it again after {over_at:%Y-%m-%d %H:%M} UTC"
        )


async def _erase_jobs(db: Database, ours: Doc) -> None:
    async for job in db["jobs"].find({**ours, **LISTED["jobs"]}, {"phase": 1}):
        if not JOB.is_final(job["phase"]):
            await _state(db, JobCancelled(), job["_id"])
        deleted = await _state(db, JobDeleted(), job["_id"], END_OF_JOB)
        if deleted.done and deleted.doc is not None:
            await let_go(db, deleted.doc, ACTOR)


async def _erase_models(db: Database, ours: Doc) -> None:
    """One that is staged goes with its job, by the registry."""
    async for model in db["models"].find({**ours, "phase": "published"}, {"_id": 1}):
        await _state(db, ModelDeleted(), model["_id"])
        await ledger.release(db, f"model/{model['_id']}")


async def _erase_files(db: Database, ours: Doc) -> None:
    async for file in db["files"].find({**ours, **LISTED["files"]}, {"_id": 1}):
        await _state(db, FileDeleted(), file["_id"], END_OF_FILE)
        await release_bytes(db, file["_id"])


async def _state(db: Database, fact: Fact, thing_id: str, also: Doc | None = None) -> Advanced:
    op_id = f"erase/{secrets.token_hex(6)}"
    return await advance(db, fact.kind, thing_id, fact, actor=ACTOR, op_id=op_id, also=also)
