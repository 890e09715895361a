"""Checkpoints by the name that calls them: from the projected facts that they were saved, while their bytes are there.

The ledger says which bytes are there: whoever removes a checkpoint drops its reference first.
"""

from collections.abc import Sequence

from luthier_api.store.repository import Repository
from luthier_common.contract.topics import Kind
from luthier_common.kit import ledger
from luthier_common.kit.migrate import LISTED
from luthier_common.kit.mongo import Doc

SAVED = "CheckpointSaved"
_JOB_FIELDS = dict.fromkeys(("org", "project", "created_at", "spec", "base_digest", "generation", "model_name"), 1)
_ROW_FIELDS = dict.fromkeys(("thing", "seq", "generation", "at", "body"), 1)


async def find_job_named(repository: Repository, model_name: str) -> Doc | None:
    """The job whose model has, or would have, this name. With a deleted job go its checkpoints."""
    query = {"model_name": model_name, **repository.wall, **LISTED["jobs"]}
    return await repository.db["jobs"].find_one(query, _JOB_FIELDS)


async def find_saved(repository: Repository, job_id: str, **values: int) -> Doc | None:
    """The last fact that a checkpoint of a job of this project was saved, with these values (`seq`, `step`...)."""
    query: Doc = {"thing": job_id, "type": SAVED, "kind": str(Kind.JOB)}
    query |= {"org": repository.principal.org, "project": repository.principal.project}
    query |= {"body.data.step" if name == "step" else name: value for name, value in values.items()}
    rows = await repository.db["events"].find(query, _ROW_FIELDS).sort("seq", -1).to_list(1)
    return rows[0] if rows else None


async def stored_keys(repository: Repository, keys: Sequence[str]) -> frozenset[str]:
    """Those of the prefixes whose bytes are there and stay."""
    query: Doc = {"_id": {"$in": list(keys)}, "references": {"$nin": [[], None]}, "sweeping": {"$ne": True}}
    return frozenset([row["_id"] async for row in repository.db[ledger.COLLECTION].find(query, {"_id": 1})])
