"""Claims on long work: one registry at a time does it, and another takes over when that one is gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from luthier_common.kit import leases
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import DRIVER_ERRORS, Database


class Claims:
    """Saves work; that two registries do the same thing at once is never wrong, only wasteful."""

    def __init__(self, db: Database, instance: str, ttl_s: float) -> None:
        self._db = db
        self._instance = instance
        self._ttl_s = ttl_s

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[bool]:
        """Whether the work is ours while the block runs."""
        lease = await leases.acquire(self._db, name, self._instance, self._ttl_s)
        if lease is None:
            yield False
            return
        renewal = asyncio.create_task(self._renew(name))
        try:
            yield True
        finally:
            renewal.cancel()
            with suppress(asyncio.CancelledError):
                await renewal
            with suppress(TransientError, *DRIVER_ERRORS):
                await leases.release(self._db, lease)

    async def _renew(self, name: str) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            with suppress(TransientError, *DRIVER_ERRORS):
                await leases.acquire(self._db, name, self._instance, self._ttl_s)
