"""Places for files on their way in and out of one process: so many for each caller, a third for an organisation.

Clients set the pace, so none of them may hold up others for long: what comes in waits for a place, a while, before
its body is looked at and its time begins; what goes out is refused at once.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from luthier_api.domain import Principal
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.turns import Lines, Turns

MAX_UPLOADS = 36
"""As many as the store takes from writers at a time (`kit/objects_s3.py`): none waits there, where its time runs."""
MAX_DOWNLOADS = 36
"""Each holds a connection to the object store for as long as its client reads; other things are read there too."""
WAIT_S = 30.0
"""Proxies give a request up that nobody reads from for a minute."""


class Uploads:
    """Places that are waited for."""

    def __init__(self, most_each: int) -> None:
        """So many for each key, and for each end user that a key acts for."""
        self._callers = Lines(most_each)
        self._orgs = Lines(MAX_UPLOADS // 3)
        self._all = asyncio.Semaphore(MAX_UPLOADS)

    @asynccontextmanager
    async def place(self, who: Principal) -> AsyncIterator[None]:
        """A place as long as the block lasts; ApiError when none has become free in time."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT_S):
                    for line in (self._callers.of(f"{who.key_id}/{who.end_user}"), self._orgs.of(who.org), self._all):
                        await held.enter_async_context(line)
            except TimeoutError as error:
                raise ApiError(ErrorCode.TOO_MANY_UPLOADS, ErrorCode.TOO_MANY_UPLOADS.sentence) from error
            yield


class Downloads:
    """Places that are there or not."""

    def __init__(self, most_each: int) -> None:
        """So many for each key."""
        self._keys = Turns(most_each)
        self._orgs = Turns(MAX_DOWNLOADS // 3, MAX_DOWNLOADS)

    @contextmanager
    def place(self, who: Principal) -> Iterator[None]:
        """A place as long as the block lasts; ApiError when there is none."""
        refusal = ApiError(ErrorCode.TOO_MANY_DOWNLOADS, ErrorCode.TOO_MANY_DOWNLOADS.sentence)
        with self._orgs.taken(who.org, refusal), self._keys.taken(who.key_id, refusal):
            yield
