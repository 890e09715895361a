"""Keys that are none: an address may try only so many, so that keys cannot be guessed at speed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.types import Scope

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.rates import Windows, wait_headers

_NO_ADDRESS = "unknown"
MAX_WAITING = 100
"""Requests from such addresses, of all together, that wait for their keys to be looked up."""


class FailedKeys:
    """How often an address came with a key that is none.

    Above the limit its unknown keys are looked up one at a time: an address may be that of many, and a good key among
    them is not shut out for what the others send.
    """

    def __init__(self, windows: Windows, per_minute: int) -> None:
        self._windows = windows
        self._per_minute = per_minute
        self._one_at_a_time = asyncio.Semaphore(1)
        self._num_waiting = 0

    def is_over(self, scope: Scope) -> bool:
        """Whether the address has failed too often."""
        return self._windows.is_full(address_of(scope), self._per_minute)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For a look-up above the limit; ApiError when too many wait for one already."""
        if self._num_waiting >= MAX_WAITING:
            raise self.refused()
        self._num_waiting += 1
        try:
            async with self._one_at_a_time:
                yield
        finally:
            self._num_waiting -= 1

    def refused(self) -> ApiError:
        message = "Too many requests with keys that are not valid came from this address."
        return ApiError(ErrorCode.TOO_MANY_FAILED_KEYS, message, headers=wait_headers(self._windows.reset_s))

    def count(self, scope: Scope) -> None:
        self._windows.take(address_of(scope), self._per_minute)


def address_of(scope: Scope) -> str:
    """The client's address as the connection has it, or as a proxy says that the settings name: nobody else's header is
    believed."""
    client = scope.get("client")
    return str(client[0]) if client else _NO_ADDRESS
