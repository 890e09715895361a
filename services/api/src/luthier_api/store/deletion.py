"""What a deleted job leaves to be let go: its bytes, the file with its metrics, and who may call its checkpoints.

The job's document stays, without what its user wrote on it: its id is a cursor of lists, and says that it was made.
"""

from luthier_api.store.permissions import revoke_checkpoints
from luthier_api.store.platform import END_OF_FILE, RELEASE_DUE, release_bytes
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import FileDeleted
from luthier_common.contract.ids import result_file_id_of
from luthier_common.contract.spec import JobSpec
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance
from luthier_common.kit import leases, ledger
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc

END_OF_JOB: Doc = {RELEASE_DUE: True, "metadata": None}
"""What a deletion sets beside its fact."""
_FIELDS = dict.fromkeys(("org", "project", "generation", "model_name", "spec"), 1)


async def find_unreleased_jobs(db: Database) -> list[Doc]:
    """Deleted jobs with something still to be let go: after a crash, or while a room works on them."""
    return await db["jobs"].find({RELEASE_DUE: True}, _FIELDS).to_list(None)


async def let_go(db: Database, job: Doc, actor: Actor) -> None:
    """Done again it changes nothing; the sweep does so until nobody is left who could still store something."""
    is_last = not await _is_worked_on(db, job["_id"])
    for generation in range(1, job["generation"] + 1):
        file_id = result_file_id_of(job["_id"], generation)
        await advance(db, Kind.FILE, file_id, FileDeleted(), actor=actor, also=END_OF_FILE)
        await release_bytes(db, file_id)
    await failpoint("deletion.mid_release")
    await ledger.release(db, f"job/{job['_id']}")
    await ledger.release_files(db, JobSpec.model_validate(job["spec"]).files)
    await revoke_checkpoints(db, job)
    if is_last:
        await db["jobs"].update_one({"_id": job["_id"]}, {"$unset": {RELEASE_DUE: ""}})


async def _is_worked_on(db: Database, job_id: str) -> bool:
    """A run that was cancelled stores its log before it frees its slots; checks and registration hold leases."""
    if await db["nodes"].find_one({"slots.holder.job": job_id}, {"_id": 1}) is not None:
        return True
    held: Doc = {"_id": {"$in": [f"check/{job_id}", f"register/{job_id}"]}, "owner": {"$ne": None}}
    now: Doc = {"$expr": {"$gt": ["$until", "$$NOW"]}}
    return await db[leases.COLLECTION].find_one({**held, **now}, {"_id": 1}) is not None
