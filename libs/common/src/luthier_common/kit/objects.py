"""Objects by key: one interface over a local directory (`file://`) and S3 (`s3://bucket/prefix`).

A key is a relative path of plain segments (`jobs/ftjob-1/model.safetensors`). No key may lie below another key
(`a` and `a/b`): a directory cannot hold both, so no caller may rely on it.
"""

import asyncio
import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar
from urllib.parse import urlsplit

from luthier_common.kit.errors import LuthierError, TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.telemetry import tracer

READ_LIMIT_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
MAX_PENDING = 4096
"""So many pieces wait for a write at most: those of a slow sender are small, and each has its cost in memory."""
PART_PREFIX = ".part-"
"""So begins the name of a file that is being written; one that nobody writes any more was left by a killed process."""
_MAX_KEY_BYTES = 900
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@,:~-]{0,199}")
# The S3 client costs half a second and 40 MB: it is loaded only by those who name an s3:// address.
_MODULES = {"file": "luthier_common.kit.objects_file", "s3": "luthier_common.kit.objects_s3"}

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ObjectExistsError(LuthierError):
    """A conditional put found the key taken; nothing was changed."""

    code = "object_exists"


class ObjectMissingError(LuthierError, LookupError):
    """There is no object under this key."""

    code = "object_missing"


class ObjectStoreUnavailableError(TransientError):
    """The store did not answer, or not in full."""

    code = "object_store_unavailable"


@dataclass(frozen=True, slots=True)
class Stored:
    """What a put wrote."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object."""

    key: str
    bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach S3; what is None comes from the standard AWS_* environment."""

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


class ObjectStore(ABC):
    """The interface that rooms use. Errors are those of this module; a bad key is a ValueError."""

    async def put(self, key: str, chunks: AsyncIterator[bytes] | bytes, *, if_absent: bool = False) -> Stored:
        """Writes the object in full or not at all, streaming, and hashes on the way.

        With `if_absent` an existing key is left as it is and ObjectExistsError raised. Of several writers at once one
        wins where the server checks atomically: a directory and Amazon's S3 do, some that resemble it only look first.
        """
        check_key(key)
        with tracer().start_as_current_span("objectstore.put", attributes={"luthier.object.key": key}) as span:
            stored = await self._put(key, _once(chunks) if isinstance(chunks, bytes) else chunks, if_absent)
            span.set_attribute("luthier.object.bytes", stored.bytes)
            await failpoint("objects.after_put")
        return stored

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes `[start, end)`; what lies behind the object's end is simply not there.

        ObjectMissingError comes with the first chunk: use `head` where the answer must be known before.
        """
        check_key(key)
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"not a range: {start} to {end}")
        return _once(b"") if end == start else self._get(key, start, end)

    async def read(self, key: str, *, limit_bytes: int = READ_LIMIT_BYTES) -> bytes:
        """A small object as a whole; ValueError when it is larger than `limit_bytes`."""
        content = bytearray()
        async for chunk in self.get(key, end=limit_bytes + 1):
            content += chunk
        if len(content) > limit_bytes:
            raise ValueError(f"object {key} is larger than {limit_bytes} bytes")
        return bytes(content)

    async def head(self, key: str) -> ObjectInfo | None:
        """Size and time, or None when there is no such object."""
        check_key(key)
        return await self._head(key)

    async def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error."""
        check_key(key)
        await self._delete(key)
        await failpoint("objects.after_delete")

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """All objects whose key starts with `prefix` (any part of a key), in no promised order."""
        if prefix:
            check_key(prefix.removesuffix("/"))
        return self._list(prefix)

    async def copy(self, source: str, target: str) -> None:
        """Copies inside the store, replacing the target; ObjectMissingError when there is no source."""
        check_key(source)
        check_key(target)
        with tracer().start_as_current_span("objectstore.copy", attributes={"luthier.object.key": target}):
            await self._copy(source, target)

    async def download(self, key: str, path: Path) -> str:
        """Streams the object to a file (whole or not at all, synced) and answers its sha256."""
        with tracer().start_as_current_span("objectstore.download", attributes={"luthier.object.key": key}):
            return (await write_file(path, self.get(key), path.parent)).sha256

    async def upload(self, path: Path, key: str) -> Stored:
        """Streams a file into the store."""
        return await self.put(key, read_file(path))

    @abstractmethod
    async def check(self) -> None:
        """Raises unless the store answers now; for `/readyz`."""

    @abstractmethod
    async def sweep(self, older_than: timedelta) -> int:
        """Removes what killed writers left unfinished that long ago; answers how many."""

    @abstractmethod
    async def _put(self, key: str, chunks: AsyncIterator[bytes], if_absent: bool) -> Stored: ...

    @abstractmethod
    def _get(self, key: str, start: int, end: int | None) -> AsyncIterator[bytes]: ...

    @abstractmethod
    async def _head(self, key: str) -> ObjectInfo | None: ...

    @abstractmethod
    async def _delete(self, key: str) -> None: ...

    @abstractmethod
    def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]: ...

    @abstractmethod
    async def _copy(self, source: str, target: str) -> None: ...


@asynccontextmanager
async def open_objects(url: str, access: S3Access | None = None) -> AsyncIterator[ObjectStore]:
    """The store at `file:///directory` or `s3://bucket/prefix`; ValueError for anything else."""
    module = _MODULES.get(urlsplit(url).scheme)
    if module is None:
        raise ValueError("an object store is file:///directory or s3://bucket/prefix")
    opened: AbstractAsyncContextManager[ObjectStore] = import_module(module).open_store(url, access or S3Access())
    async with opened as store:
        yield store


def check_key(key: str) -> None:
    """ValueError unless the key is a relative path of plain segments."""
    if len(key) > _MAX_KEY_BYTES or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise ValueError(f"not an object key: {key[:200]!r}")


async def finish_first(work: Awaitable[_T]) -> _T:
    """Awaits something that must not be left half done: a cancel is passed on only when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Runs blocking code in a thread that is never left alone with a resource that its caller closes."""
    return await finish_first(asyncio.to_thread(call, *args, **kwargs))


async def read_file(path: Path) -> AsyncIterator[bytes]:
    """The bytes of a local file."""
    source = await in_thread(path.open, "rb")
    try:
        while chunk := await in_thread(source.read, CHUNK_BYTES):
            yield bytes(chunk)
    finally:
        source.close()


async def write_file(path: Path, chunks: AsyncIterator[bytes], scratch: Path, *, if_absent: bool = False) -> Stored:
    """Writes a file by way of a synced temporary one in `scratch` (same file system); the result is whole or absent.

    FileExistsError when `if_absent` and it is there.
    """
    target, name = _open_scratch(scratch)
    digest, num_bytes, num_flushed = hashlib.sha256(), 0, 0
    pending: list[bytes] = []

    def flush() -> None:
        content = b"".join(pending)
        pending.clear()
        digest.update(content)
        target.write(content)

    try:
        async for chunk in chunks:
            pending.append(chunk)
            num_bytes += len(chunk)
            if num_bytes - num_flushed >= CHUNK_BYTES or len(pending) >= MAX_PENDING:
                await in_thread(flush)
                num_flushed = num_bytes
        await in_thread(flush)
        await failpoint("objects.before_publish")
        await in_thread(_publish, target, name, path, if_absent)
    finally:
        try:
            target.close()  # on a full disk this fails too
        finally:
            name.unlink(missing_ok=True)
    return Stored(path.name, num_bytes, digest.hexdigest())


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


def _open_scratch(scratch: Path) -> tuple[BinaryIO, Path]:
    handle, name = tempfile.mkstemp(prefix=PART_PREFIX, dir=scratch)
    return os.fdopen(handle, "wb"), Path(name)


def _publish(target: BinaryIO, name: Path, path: Path, if_absent: bool) -> None:
    target.flush()
    os.fsync(target.fileno())
    if if_absent:
        os.link(name, path)
    else:
        name.replace(path)
    sync_directory(path.parent)
