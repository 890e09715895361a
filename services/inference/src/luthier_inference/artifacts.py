"""What is fetched from the object store: verified adapters and bundles of bases, cached as long as they are used."""

import asyncio
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier_common.kit.bases import BundleCorruptError, drop_cached, fetch_files, hold_cached, keep_last_used
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectMissingError, ObjectStore
from luthier_inference.chat import AdapterRef
from luthier_inference.domain import FilesMissingError, FilesUnreadableError

MANIFEST_FILE = "manifest.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MAX_MANIFEST_BYTES = 1024 * 1024
_MISSING = "The files of the model are not in the object store any more."
_BASE_SPARED_S = 3600.0
"""Trainers of this machine may share the bases: one that was just fetched is about to be read."""


class ArtifactCorruptError(LuthierError):
    """The artifact is not what its manifest says, or its manifest is not the one that was named."""

    code = "artifact_corrupt"


class ArtifactCache:
    """Keeps the last used adapters below one directory. Only files that serving needs are ever kept."""

    def __init__(self, objects: ObjectStore, directory: Path, max_dirs: int) -> None:
        self._objects = objects
        self._directory = directory
        self._max_dirs = max_dirs
        self._pruning = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """`AdapterRef.name` of those on disk."""
        return [path.name for path in self._directory.iterdir()] if self._directory.exists() else []

    async def fetch(self, adapter: AdapterRef) -> Path:
        """The adapter's directory.

        Raises `ArtifactCorruptError`, `FilesMissingError`, `FilesUnreadableError`, or what the object store raises.
        """
        target = self._directory / adapter.name
        try:
            if not target.exists():
                async with self._pruning:
                    await asyncio.to_thread(keep_last_used, self._directory, self._max_dirs - 1)
            await self._fill(adapter, target)
        except ObjectMissingError as error:
            raise FilesMissingError(_MISSING) from error
        except BundleCorruptError as error:
            raise ArtifactCorruptError(str(error)) from error
        except OSError as error:
            raise FilesUnreadableError(f"the adapter cannot be kept here: {error.strerror}") from error
        return target

    async def read(self, adapter: AdapterRef, name: str, limit_bytes: int) -> bytes | None:
        """One more file of the artifact, verified, which is not kept; None where the artifact has none.

        Raises `ArtifactCorruptError`, also for a larger one, and `FilesMissingError`.
        """
        try:
            data = await self._objects.read(adapter.key + MANIFEST_FILE, limit_bytes=_MAX_MANIFEST_BYTES)
            _check_sha256(MANIFEST_FILE, data, adapter.manifest_sha256)
            files = _entries(data, [name])
            if not files:
                return None
            content = await self._objects.read(adapter.key + name, limit_bytes=limit_bytes)
        except ObjectMissingError as error:
            raise FilesMissingError(_MISSING) from error
        except ValueError as error:
            raise ArtifactCorruptError(f"{name} or {MANIFEST_FILE} is too large") from error
        _check_sha256(name, content, files[0]["sha256"])
        return content

    async def drop(self, name: str) -> None:
        """Keep it no longer."""
        await asyncio.to_thread(drop_cached, self._directory / name)

    async def _fill(self, adapter: AdapterRef, target: Path) -> None:
        data = await self._read_manifest(adapter, target)
        files = _entries(data, ADAPTER_FILES)
        if missing := sorted(set(ADAPTER_FILES) - {file["name"] for file in files}):
            raise ArtifactCorruptError(f"the artifact has no {', '.join(missing)}")
        await fetch_files(self._objects, adapter.key, files, target)
        if not (target / MANIFEST_FILE).exists():
            await asyncio.to_thread((target / MANIFEST_FILE).write_bytes, data)

    async def _read_manifest(self, adapter: AdapterRef, target: Path) -> bytes:
        path = target / MANIFEST_FILE
        if path.exists():
            data = await asyncio.to_thread(path.read_bytes)
            if hashlib.sha256(data).hexdigest() == adapter.manifest_sha256:
                return data
        data = await self._objects.read(adapter.key + MANIFEST_FILE, limit_bytes=_MAX_MANIFEST_BYTES)
        _check_sha256(MANIFEST_FILE, data, adapter.manifest_sha256)
        path.unlink(missing_ok=True)
        return data


class BaseCache:
    """Keeps the last used bundles of bases below one directory. Those that are loaded make no room for a trainer."""

    def __init__(self, objects: ObjectStore, directory: Path, max_dirs: int) -> None:
        self._objects = objects
        self._directory = directory
        self._max_dirs = max_dirs
        self._holds: dict[str, int] = {}

    async def fetch(self, base: Doc, loaded: Collection[str]) -> Path:
        """The directory of a bundle; another one makes room where need be, but none of those `loaded` (digests).

        Raises `BundleCorruptError`, `OSError`, or what the object store raises.
        """
        digest = str(base["digest"])
        target = self._directory / digest
        for unused in self._holds.keys() - set(loaded):
            os.close(self._holds.pop(unused))
        if not target.exists():
            spared = frozenset(loaded)
            await asyncio.to_thread(
                keep_last_used, self._directory, self._max_dirs - 1, spared=spared, unused_for_s=_BASE_SPARED_S
            )
        await fetch_files(self._objects, base["key"], base["files"], target)
        if digest not in self._holds:
            # Where nobody can write, nobody can drop it either.
            with suppress(OSError):
                self._holds[digest] = await asyncio.to_thread(hold_cached, target)
        return target


def _check_sha256(name: str, data: bytes, sha256: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactCorruptError(f"{name} has another sha256 than the one named")


def _entries(manifest: bytes, names: Sequence[str]) -> list[dict[str, Any]]:
    """The manifest's entries of these files, as far as it has them."""
    try:
        return [
            {"name": str(file["name"]), "bytes": int(file["bytes"]), "sha256": str(file["sha256"])}
            for file in json.loads(manifest)["files"]
            if file["name"] in names
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError("the manifest cannot be read") from error
