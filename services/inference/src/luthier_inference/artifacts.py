"""Adapters on disk: fetched from the object store, verified against their manifest, cached under its sha256."""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from luthier_common.kit.bases import drop_cached, fetch_files
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.objects import ObjectStore
from luthier_inference.domain import FilesUnreadableError

MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.json"
TRAINING_FILE = "training.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MAX_MANIFEST_BYTES = 1024 * 1024


class ArtifactCorruptError(LuthierError):
    """The artifact is not what its manifest says, or its manifest is not the one that was named."""

    code = "artifact_corrupt"


class ArtifactCache:
    """Keeps the last used artifacts below one directory. Only files that serving needs are ever fetched."""

    def __init__(self, objects: ObjectStore, directory: Path, max_dirs: int) -> None:
        self._objects = objects
        self._directory = directory
        self._max_dirs = max_dirs
        self._pruning = asyncio.Lock()

    async def fetch(self, key: str, manifest_sha256: str) -> Path:
        """The artifact's directory.

        Raises `ArtifactCorruptError`, `FilesUnreadableError`, or what the object store raises.
        """
        target = self._directory / manifest_sha256
        try:
            if not target.exists():
                async with self._pruning:
                    await asyncio.to_thread(self._prune)
            await self._fill(key, manifest_sha256, target)
            os.utime(target)
        except OSError as error:
            raise FilesUnreadableError(f"the adapter cannot be kept here: {error.strerror}") from error
        return target

    async def _fill(self, key: str, sha256: str, target: Path) -> None:
        data = await self._read_manifest(key, sha256, target)
        await fetch_files(self._objects, key, _wanted(data), target)
        if not (target / MANIFEST_FILE).exists():
            await asyncio.to_thread((target / MANIFEST_FILE).write_bytes, data)

    async def _read_manifest(self, key: str, sha256: str, target: Path) -> bytes:
        path = target / MANIFEST_FILE
        if path.exists():
            data = await asyncio.to_thread(path.read_bytes)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        data = await self._objects.read(key + MANIFEST_FILE, limit_bytes=_MAX_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactCorruptError("the manifest has another sha256 than the one named")
        path.unlink(missing_ok=True)
        return data

    def _prune(self) -> None:
        if not self._directory.exists():
            return
        kept = sorted(self._directory.iterdir(), key=_used_at_s)
        for path in kept[: max(0, len(kept) - self._max_dirs + 1)]:
            drop_cached(path)


def _used_at_s(path: Path) -> float:
    """When it was last used; what another process of this machine has removed meanwhile comes first."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _wanted(data: bytes) -> list[dict[str, Any]]:
    """The manifest's entries of the files that serving needs."""
    try:
        files = json.loads(data)["files"]
        wanted = [
            {"name": str(file["name"]), "bytes": int(file["bytes"]), "sha256": str(file["sha256"])}
            for file in files
            if file["name"] in (*ADAPTER_FILES, GOLDEN_FILE, TRAINING_FILE)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError("the manifest cannot be read") from error
    missing = set(ADAPTER_FILES) - {file["name"] for file in wanted}
    if missing:
        raise ArtifactCorruptError(f"the artifact has no {', '.join(sorted(missing))}")
    return wanted
