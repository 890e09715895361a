"""Files of a run between the object store and its directory; nothing is used before its sha256 was seen."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from luthier_common.contract.events import Blob, CheckpointSaved
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.bases import BundleCorruptError, fetch_files
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.objects import ObjectExistsError, ObjectMissingError, ObjectStore, in_thread
from luthier_trainer.checkpoints import MANIFEST_FILE, read_manifest, verify
from luthier_trainer.domain import Assignment
from luthier_trainer.store import Store

METRICS_FILE = "metrics.jsonl"
LOG_OBJECT = "log.txt"
_LOG_TAIL_BYTES = 1 << 20


class PreparationError(Exception):
    """Something that a run needs is not there."""

    def __init__(self, reason: FailureReason, message: str | None = None) -> None:
        super().__init__(message or reason.sentence)
        self.reason = reason
        self.message = message or reason.sentence


@dataclass(frozen=True)
class Restored:
    """A checkpoint as it lies on disk now."""

    directory: Path
    saved: CheckpointSaved


async def fetch_base_bundle(store: Store, objects: ObjectStore, digest: str, cache: Path) -> Path:
    """The base that the job's first placement pinned."""
    base = await store.read_base(digest)
    if base is None:
        raise PreparationError(FailureReason.BASE_MISSING)
    target = cache / digest
    await fetch_files(objects, base["key"], base["files"], target)
    return target


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


async def fetch_checkpoint(objects: ObjectStore, saved: CheckpointSaved, target: Path) -> list[str]:
    """Download a checkpoint; what is wrong with it, empty when it is whole."""
    await in_thread(target.mkdir, parents=True, exist_ok=True)
    try:
        if await objects.download(saved.blob.key + MANIFEST_FILE, target / MANIFEST_FILE) != saved.blob.manifest_sha256:
            return ["its manifest is not the one that was saved"]
        files = [file.model_dump() for file in read_manifest(target).files]
        await fetch_files(objects, saved.blob.key, files, target)
    except (ObjectMissingError, BundleCorruptError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]
    return verify(target)


async def find_older_checkpoints(objects: ObjectStore, run: Assignment, below_step: int) -> list[CheckpointSaved]:
    """Finished uploads of this job's earlier steps, the latest first; each must still be checked."""
    found = []
    async for info in objects.list(run.job_prefix):
        attempt, _, rest = info.key.removeprefix(run.job_prefix).partition("/")
        step, _, name = rest.partition("/")
        if name != MANIFEST_FILE or not step.startswith("step-") or int(step.removeprefix("step-")) >= below_step:
            continue
        content = await objects.read(info.key)
        try:
            manifest = json.loads(content)
            num_bytes = sum(file["bytes"] for file in manifest["files"])
        except (ValueError, KeyError, TypeError):
            continue
        digest = hashlib.sha256(content).hexdigest()
        blob = Blob(key=info.key.removesuffix(MANIFEST_FILE), manifest_sha256=digest, bytes=num_bytes)
        metrics = manifest.get("metrics", {})
        saved = CheckpointSaved(
            step=int(step.removeprefix("step-")), attempt=int(attempt.removeprefix("a")), blob=blob, metrics=metrics
        )
        found.append(saved)
    return sorted(found, key=lambda saved: (saved.step, saved.attempt), reverse=True)


async def upload_directory(
    store: Store, objects: ObjectStore, run: Assignment, directory: Path, key: str, manifest_sha256: str
) -> Blob:
    """Upload a sealed directory, its manifest last and only once. Doing it again is harmless."""
    manifest = read_manifest(directory)
    num_bytes = sum(file.bytes for file in manifest.files)
    await store.note_objects(key, manifest_sha256, num_bytes, run.claim, run.org, run.project)
    for file in manifest.files:
        stored = await objects.upload(directory / file.name, key + file.name)
        if stored.sha256 != file.sha256:
            raise OSError(f"{file.name} changed while it was uploaded")
    await failpoint("trainer.before_manifest")
    content = await in_thread((directory / MANIFEST_FILE).read_bytes)
    try:
        await objects.put(key + MANIFEST_FILE, content, if_absent=True)
    except ObjectExistsError:
        if await objects.read(key + MANIFEST_FILE) != content:
            raise
    return Blob(key=key, manifest_sha256=manifest_sha256, bytes=num_bytes)


async def fetch_earlier_metrics(objects: ObjectStore, run: Assignment, resumed: CheckpointSaved, target: Path) -> None:
    """The series of the attempt that the run goes on from, up to its checkpoint."""
    try:
        content = await objects.read(f"{run.job_prefix}a{resumed.attempt}/{METRICS_FILE}")
    except ObjectMissingError:
        return
    lines = [line for line in content.splitlines(keepends=True) if json.loads(line)["step"] <= resumed.step]
    await in_thread(target.write_bytes, b"".join(lines))


async def upload_run_file(store: Store, objects: ObjectStore, run: Assignment, path: Path, name: str) -> str:
    """The series or the end of the log, under this attempt; its key."""
    key = run.prefix + name
    content = await in_thread(path.read_bytes)
    stored = await objects.put(key, content[-_LOG_TAIL_BYTES:] if name == LOG_OBJECT else content)
    await store.note_objects(key, stored.sha256, stored.bytes, run.claim, run.org, run.project)
    return key
