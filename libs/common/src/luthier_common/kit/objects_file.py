"""Objects in a local directory: whole files, moved into place when they are synced."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from luthier_common.kit.objects import (
    CHUNK_BYTES,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectStore,
    S3Access,
    Stored,
    in_thread,
    sync_directory,
    write_file,
)

# A key's segment never starts with a dot, so this name is free.
_SCRATCH = ".unfinished"
_LIST_BATCH = 500


@asynccontextmanager
async def open_store(url: str, _access: S3Access) -> AsyncIterator[ObjectStore]:
    """The store of a `file://` address; its directory is made, mode 0700."""
    parts = urlsplit(url)
    root = Path(unquote(parts.path))
    if parts.netloc or not root.is_absolute():
        raise ValueError("a directory of objects is given as file:///absolute/path")
    await in_thread(_make_directory, root / _SCRATCH)
    yield FileObjects(root)


class FileObjects(ObjectStore):
    """One file an object, below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def check(self) -> None:
        await in_thread(os.stat, self._root / _SCRATCH)

    async def sweep(self, older_than: timedelta) -> int:
        return await in_thread(_sweep, self._root / _SCRATCH, time.time() - older_than.total_seconds())

    async def _put(self, key: str, chunks: AsyncIterator[bytes], if_absent: bool) -> Stored:
        path = self._root / key
        if if_absent and await self._head(key) is not None:
            raise ObjectExistsError(key)
        try:
            await in_thread(_make_directory, path.parent)
            stored = await write_file(path, chunks, self._root / _SCRATCH, if_absent=if_absent)
        except (NotADirectoryError, IsADirectoryError) as error:
            raise ValueError(f"{key} lies above or below another key") from error
        except FileExistsError as error:
            if if_absent and path.is_file():
                raise ObjectExistsError(key) from error
            raise ValueError(f"{key} lies above or below another key") from error
        return Stored(key, stored.bytes, stored.sha256)

    async def _get(self, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        try:
            source = await in_thread((self._root / key).open, "rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectMissingError(key) from error
        try:
            await in_thread(source.seek, start)
            left = end - start if end is not None else None
            while chunk := await in_thread(source.read, CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
                left = left - len(chunk) if left is not None else None
                yield bytes(chunk)
        finally:
            source.close()

    async def _head(self, key: str) -> ObjectInfo | None:
        return await in_thread(_info, self._root, self._root / key)

    async def _delete(self, key: str) -> None:
        await in_thread(_remove, self._root / key)

    async def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        found = _walk(self._root, prefix)
        while batch := await in_thread(_take, found):
            for info in batch:
                yield info

    async def _copy(self, source: str, target: str) -> None:
        await self._put(target, self._get(source, 0, None), False)


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    if not path.parent.is_dir():
        _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def _info(root: Path, path: Path) -> ObjectInfo | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_file():
        return None
    return ObjectInfo(str(path.relative_to(root)), found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _remove(path: Path) -> None:
    """Empty directories stay: removing them would race with a put into them."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    sync_directory(path.parent)


def _walk(root: Path, prefix: str) -> Iterator[ObjectInfo]:
    top = root / prefix.rpartition("/")[0]
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if str(path.relative_to(root)).startswith(prefix) and (info := _info(root, path)):
                yield info


def _take(found: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    return [info for info, _ in zip(found, range(_LIST_BATCH), strict=False)]


def _sweep(scratch: Path, before: float) -> int:
    num_swept = 0
    for path in scratch.iterdir():
        with suppress(FileNotFoundError):  # its writer has just finished
            if path.stat().st_mtime < before:
                path.unlink()
                num_swept += 1
    return num_swept
