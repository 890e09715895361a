"""Files of a run between the object store and its directory; nothing is used before its sha256 was seen."""

import hashlib
import json
import logging
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from luthier_common.contract.events import Blob, CheckpointSaved
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.bases import BundleCorruptError, fetch_files
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.objects import ObjectExistsError, ObjectMissingError, ObjectStore, in_thread
from luthier_trainer.checkpoints import MANIFEST_FILE, CheckpointManifest, read_manifest, verify
from luthier_trainer.domain import Assignment
from luthier_trainer.insisting import Insist
from luthier_trainer.store import Store

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
LOG_OBJECT = "log.txt"
_LOG_TAIL_BYTES = 1 << 20


class PreparationError(Exception):
    """Something that a run needs is not there."""

    def __init__(self, reason: FailureReason, message: str | None = None) -> None:
        super().__init__(message or reason.sentence)
        self.reason = reason
        self.message = message or reason.sentence


async def fetch_dataset(store: Store, objects: ObjectStore, file_id: str, sha256: str | None, target: Path) -> Path:
    """A data file, byte for byte the one that was checked."""
    file = await store.read_file(file_id)
    if file is None:
        raise PreparationError(FailureReason.FILE_MISSING)
    try:
        found = await objects.download(file["object_key"], target)
    except ObjectMissingError as error:
        raise PreparationError(FailureReason.FILE_MISSING) from error
    if found != (sha256 or file["sha256"]):
        raise PreparationError(FailureReason.STORAGE, "a data file does not have the sha256 that was checked")
    return target


async def fetch_checkpoint(objects: ObjectStore, run: Assignment, saved: CheckpointSaved, target: Path) -> list[str]:
    """Download a checkpoint that the job names; what is wrong with it, in a user's words, empty when it is whole."""
    await in_thread(target.mkdir, parents=True, exist_ok=True)
    name = MANIFEST_FILE
    try:
        if await objects.download(saved.blob.key + name, target / name) != saved.blob.manifest_sha256:
            return ["its manifest is not the one that was saved"]
        manifest = read_manifest(target)
        if foreign := _check_identity(manifest, run, saved):
            return [foreign]
        for file in manifest.files:
            name = file.name
            await fetch_files(objects, saved.blob.key, [file.model_dump()], target)
    except ObjectMissingError:
        return [f"{name} is missing"]
    except BundleCorruptError:
        return [f"{name} does not hold what was saved"]
    except ValidationError:
        return ["its manifest cannot be read"]
    return await in_thread(verify, target)


def _check_identity(manifest: CheckpointManifest, run: Assignment, saved: CheckpointSaved) -> str | None:
    """Whole, but of something else: such a run would be another one."""
    if manifest.job_id != run.claim.job_id:
        return "it is that of another job"
    if (manifest.kind, manifest.step, manifest.attempt) != ("checkpoint", saved.step, saved.attempt):
        return f"it is that of step {manifest.step} of attempt {manifest.attempt}"
    return None


async def upload_directory(
    store: Store, objects: ObjectStore, run: Assignment, directory: Path, key: str, manifest_sha256: str, insist: Insist
) -> Blob:
    """Upload a sealed directory, its manifest last and only once. Doing it again is harmless.

    `insist` repeats each file by itself: those that are stored are not sent again.
    """
    manifest = read_manifest(directory)
    num_bytes = sum(file.bytes for file in manifest.files)
    await insist(lambda: store.note_objects(key, manifest_sha256, num_bytes, run.claim, run.org, run.project))
    for file in manifest.files:
        await insist(partial(_upload_file, objects, directory / file.name, key + file.name, file.sha256))
    await insist(lambda: _upload_manifest(objects, directory / MANIFEST_FILE, key + MANIFEST_FILE, manifest_sha256))
    return Blob(key=key, manifest_sha256=manifest_sha256, bytes=num_bytes)


async def _upload_file(objects: ObjectStore, path: Path, key: str, sha256: str) -> None:
    stored = await objects.upload(path, key)
    if stored.sha256 != sha256:
        raise OSError(f"{path.name} changed while it was uploaded")
    await failpoint("trainer.mid_save")


async def _upload_manifest(objects: ObjectStore, path: Path, key: str, sha256: str) -> None:
    await failpoint("trainer.before_manifest")
    content = await in_thread(path.read_bytes)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise OSError(f"{path.name} changed while it was uploaded")
    try:
        await objects.put(key, content, if_absent=True)
    except ObjectExistsError:
        if await objects.read(key) != content:
            raise
    await failpoint("trainer.after_manifest")


async def fetch_earlier_metrics(objects: ObjectStore, run: Assignment, resumed: CheckpointSaved, target: Path) -> None:
    """The series of the attempt that the run goes on from, up to its checkpoint."""
    try:
        content = await objects.read(f"{run.job_prefix}a{resumed.attempt}/{METRICS_FILE}")
    except ObjectMissingError:
        return
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if (step := _step_of(line)) is not None and step <= resumed.step]
    await in_thread(target.write_bytes, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a line of the series; None where it cannot be read: no run fails for the sake of a picture."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        log.warning("a line of the earlier series cannot be read", extra={"bytes": len(line)})
        return None


async def upload_run_file(store: Store, objects: ObjectStore, run: Assignment, path: Path, name: str) -> str:
    """The series or the end of the log, under this attempt; its key."""
    key = run.prefix + name
    content = await in_thread(path.read_bytes)
    kept = content[-_LOG_TAIL_BYTES:] if name == LOG_OBJECT else content
    # Noted first: an object that no row names is never removed.
    await store.note_objects(key, hashlib.sha256(kept).hexdigest(), len(kept), run.claim, run.org, run.project)
    await failpoint("trainer.before_run_file")
    await objects.put(key, kept)
    return key
