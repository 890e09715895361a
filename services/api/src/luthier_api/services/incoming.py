"""Bytes on their way into the store, so that whatever happens nothing is left behind that nobody knows of."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from luthier_api.domain import Principal
from luthier_api.errors import ApiError, ErrorCode
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore, Stored


class Incoming:
    """One new object of a project: `put`, then `keep`; what is not kept when the block ends is taken away.

    After a crash the ledger's sweeper takes it away, unless the thing that `reference` names was made. With
    `most_stored` the project may store so many bytes in all, and uploads at once together no more than that;
    of two that do not both fit, both may be refused.
    """

    def __init__(
        self,
        db: Database,
        objects: ObjectStore,
        principal: Principal,
        path: str,
        reference: str,
        within_s: float,
        most_stored: int | None = None,
    ) -> None:
        self._most_stored = most_stored
        self._db = db
        self._objects = objects
        self._principal = principal
        self._key = f"{principal.org}/{principal.project}/{path}"
        self._reference = reference
        self._within_s = within_s
        self._is_loose = False
        self._param = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._is_loose:
            await self.drop()

    async def put(self, chunks: AsyncIterator[bytes], *, most: int, param: str) -> Stored:
        """Store the chunks; ApiError naming `param` when there are none, or more than `most` bytes or the room left."""
        too_large = ApiError(ErrorCode.TOO_LARGE, f"The file is larger than {most} bytes.", param=param)
        left = await self._room()
        if left is not None and left < most:
            most, too_large = max(0, left), _no_room(param)
        self._is_loose = True
        who, within_s = self._principal, self._within_s
        await ledger.intend(
            self._db, self._key, reference=self._reference, within_s=within_s, org=who.org, project=who.project
        )
        self._param = param
        stored = await self._objects.put(self._key, _limited(chunks, most, too_large))
        await failpoint("api.after_put")
        if not stored.bytes:
            raise ApiError(ErrorCode.EMPTY_FILE, "The file is empty.", param=param)
        return stored

    async def keep(self, stored: Stored) -> None:
        """From here on the object belongs to the thing that is about to be made."""
        kept = await ledger.fulfil(
            self._db, self._key, reference=self._reference, sha256=stored.sha256, num_bytes=stored.bytes
        )
        if not kept:
            raise ApiError(ErrorCode.UPLOAD_TIMEOUT, "The upload took too long.")
        left = await self._room()
        if left is not None and left < 0:  # others that came meanwhile count too
            raise _no_room(self._param)
        self._is_loose = False
        await failpoint("api.after_keep")

    async def _room(self) -> int | None:
        """How many bytes the project may still store; None where nothing bounds it."""
        if self._most_stored is None:
            return None
        who = self._principal
        return self._most_stored - await ledger.count_bytes(self._db, who.org, who.project)

    async def drop(self) -> None:
        """Take the object away at once."""
        self._is_loose = False
        await ledger.abandon(self._db, self._objects, self._key)


def _no_room(param: str) -> ApiError:
    return ApiError(ErrorCode.STORAGE_LIMIT, ErrorCode.STORAGE_LIMIT.sentence, param=param)


async def _limited(chunks: AsyncIterator[bytes], most: int, too_large: ApiError) -> AsyncIterator[bytes]:
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > most:
            raise too_large
        yield chunk
