"""The base bundle on disk: its manifest, and how a finished one appears at once or not at all.

`bundle.json` is written last, inside a temporary directory beside the target, which is then renamed: a directory
that has a manifest is complete.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_FILE = "bundle.json"
BLOCK_BYTES = 1 << 20


class BundleExistsError(FileExistsError):
    """The target holds something other than the bundle that was to be written there."""

    code = "bundle_exists"


class BundleFile(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    bytes: int = Field(ge=0)
    sha256: str


class BundleSource(BaseModel):
    """What a bundle was made from: a file, or a directory, whose sha256 is `files_digest` of what was read of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    bytes: int = Field(ge=0)
    sha256: str


class BundleManifest(BaseModel):
    """What a base bundle is and which bytes it consists of.

    `revision` is the sha256 of the source, never a hub revision that the bytes are not. `digest` names the
    content: it depends on file names and bytes alone, and equal digests mean equal bundles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["luthier.base-bundle/1"] = "luthier.base-bundle/1"
    name: str
    revision: str
    digest: str
    architecture: str
    licence: str | None
    num_parameters: int = Field(gt=0)
    dtype: str
    context_length: int = Field(gt=0)
    source: BundleSource
    converter: str
    files: list[BundleFile]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def files_digest(files: list[BundleFile]) -> str:
    """One name for a set of files, independent of their order."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(directory: Path) -> BundleManifest | None:
    """The manifest of a finished bundle, or None where there is none."""
    path = directory / MANIFEST_FILE
    return BundleManifest.model_validate_json(path.read_bytes()) if path.is_file() else None


def damaged_files(directory: Path, manifest: BundleManifest) -> list[str]:
    """Names of the files whose bytes are not those that the manifest names."""
    return [
        file.name
        for file in manifest.files
        if not (directory / file.name).is_file() or file_sha256(directory / file.name) != file.sha256
    ]


@contextmanager
def staging_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, gone afterwards unless it was published."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_bundle_file(path: Path, write: Callable[[BinaryIO], None]) -> BundleFile:
    """Write one file durably and say which bytes it holds."""
    with path.open("xb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    return BundleFile(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def link_bundle_file(source: Path, staging: Path) -> None:
    """Let a bundle hold a file where it lies: weights are not copied, on whichever disk they are."""
    (staging / source.name).symlink_to(source.resolve())


def present_bundle(target: Path, revision: str, converter: str) -> BundleManifest | None:
    """What an earlier run made of the same source at `target`; anything else there is `BundleExistsError`."""
    if not target.exists():
        return None
    present = read_manifest(target)
    if present is None or (present.revision, present.converter) != (revision, converter):
        raise BundleExistsError(f"{target} exists and is not the bundle of this source")
    return present


def publish_bundle(staging: Path, target: Path, manifest: BundleManifest) -> BundleManifest:
    """Write the manifest and rename the directory into place.

    Where another process was faster with the same content, its bundle stays and its manifest is the answer.
    """
    text = manifest.model_dump_json(indent=2) + "\n"
    write_bundle_file(staging / MANIFEST_FILE, lambda stream: _write_all(stream, text.encode()))
    _fsync_directory(staging)
    try:
        staging.rename(target)
    except OSError as error:
        present = read_manifest(target)
        if present is None or present.digest != manifest.digest:
            raise BundleExistsError(f"{target} exists and is not this bundle") from error
        return present
    _fsync_directory(target.parent)
    return manifest


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
