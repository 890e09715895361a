"""Checkpoint directories on disk: they appear complete or not at all, and are believed only after a check.

`manifest.json` (names, bytes, sha256) is written last, into a staging directory that is then renamed. What a
checkpoint holds beside the weights (optimiser, scheduler, random state) is for resuming and never published.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_FILE = "manifest.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors")
STATE_FILES = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
_BLOCK_BYTES = 1 << 20


class ManifestFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CheckpointManifest(BaseModel):
    """What a checkpoint (or the finished, publishable model) consists of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["luthier.checkpoint/1"] = "luthier.checkpoint/1"
    kind: Literal["checkpoint", "final"]
    job_id: str
    attempt: int
    step: int
    metrics: dict[str, float]
    files: list[ManifestFile]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(directory: Path) -> CheckpointManifest:
    """The manifest of a checkpoint; raises `OSError` or pydantic's `ValidationError`."""
    return CheckpointManifest.model_validate_json((directory / MANIFEST_FILE).read_bytes())


def verify(directory: Path) -> list[str]:
    """Why a checkpoint cannot be believed; empty when every byte is as its manifest says."""
    try:
        manifest = read_manifest(directory)
    except OSError:
        return [f"{MANIFEST_FILE} is missing"]
    except ValidationError:
        return [f"{MANIFEST_FILE} cannot be read"]
    problems = [problem for file in manifest.files if (problem := _check_file(directory, file))]
    named = {file.name for file in manifest.files}
    if not named.intersection(_WEIGHTS):
        problems.append("the manifest names no weights")
    if manifest.kind == "checkpoint":
        problems += [f"the manifest does not name {name}" for name in STATE_FILES if name not in named]
    return problems


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` when the block ends well; one that stood there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        _fsync_directory(staging)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
        _fsync_directory(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(
    staging: Path, kind: Literal["checkpoint", "final"], job_id: str, attempt: int, step: int, metrics: dict[str, float]
) -> str:
    """Make a staging directory's files durable, write their manifest last, and answer the manifest's sha256."""
    files = []
    for path in sorted(staging.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files.append(ManifestFile(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path)))
    manifest = CheckpointManifest(kind=kind, job_id=job_id, attempt=attempt, step=step, metrics=metrics, files=files)
    data = (manifest.model_dump_json(indent=2) + "\n").encode()
    with (staging / MANIFEST_FILE).open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(data).hexdigest()


def _check_file(directory: Path, file: ManifestFile) -> str | None:
    path = directory / file.name
    if not path.is_file():
        return f"{file.name} is missing"
    if path.stat().st_size != file.bytes:
        return f"{file.name} has {path.stat().st_size} bytes, not {file.bytes}"
    return None if file_sha256(path) == file.sha256 else f"{file.name} has other bytes than the manifest says"


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
