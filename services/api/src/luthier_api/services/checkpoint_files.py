"""The weights of a checkpoint, read as files. They have no document: they are there as long as the checkpoint is."""

import hashlib
import json

from luthier_api.store import Repository, checkpoints
from luthier_api.wire.checkpoints import checkpoint_id, read_weights_file_id
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectMissingError, ObjectStore

PURPOSE = "fine-tune-results"
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1024 * 1024


async def find_checkpoint_file(repository: Repository, objects: ObjectStore, file_id: str) -> Doc | None:
    """What a file document would say; None for what is no such file, belongs to others or has gone."""
    if (named := read_weights_file_id(file_id)) is None:
        return None
    job_id, seq, name = named
    if await repository.find_job(job_id, {"_id": 1}) is None:
        return None
    row = await checkpoints.find_saved(repository, job_id, seq=seq)
    blob = row["body"]["data"]["blob"] if row else None
    if row is None or blob is None or not await checkpoints.stored_keys(repository, [blob["key"]]):
        return None
    entry = await _read_entry(objects, blob, name)
    return entry and {
        "_id": file_id,
        "created_at": row["at"],
        "bytes": entry["bytes"],
        "sha256": entry["sha256"],
        "filename": f"{checkpoint_id(row)}/{name}",
        "purpose": PURPOSE,
        "status": "processed",
        "object_key": blob["key"] + name,
    }


async def _read_entry(objects: ObjectStore, blob: Doc, name: str) -> Doc | None:
    """What the manifest says of a file, when it is the manifest that the trainer named."""
    try:
        content = await objects.read(blob["key"] + MANIFEST_FILE, limit_bytes=MAX_MANIFEST_BYTES)
    except ObjectMissingError:
        return None
    if hashlib.sha256(content).hexdigest() != blob["manifest_sha256"]:
        return None
    return next((file for file in json.loads(content)["files"] if file["name"] == name), None)
