"""Which instance is active now: a lease that saves work. Placement stays right with two active ones."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database

log = logging.getLogger(__name__)
LEASE = "scheduler"
MARGIN = 0.8
"""Share of the TTL after which an instance that could not renew stops by itself."""


class Leader:
    def __init__(self, db: Database, clock: Clock, instance: str, ttl_s: float) -> None:
        self._db = db
        self._clock = clock
        self._instance = instance
        self._ttl_s = ttl_s
        self._lease: leases.Lease | None = None
        self._active_until_s = 0.0

    @property
    def is_active(self) -> bool:
        return self._lease is not None and self._clock.monotonic_s() < self._active_until_s

    async def renew(self) -> bool:
        """Take or keep the lease; True when this instance has just become the active one."""
        was_active = self.is_active
        asked_at_s = self._clock.monotonic_s()
        self._lease = await leases.acquire(self._db, LEASE, self._instance, self._ttl_s)
        await failpoint("scheduler.after_lease")
        self._active_until_s = asked_at_s + MARGIN * self._ttl_s
        if self.is_active != was_active:
            log.info("this instance is now %s", "active" if self.is_active else "a standby")
        return self.is_active and not was_active

    @asynccontextmanager
    async def resigning(self) -> AsyncIterator[None]:
        """Lets a standby take over at once when the block ends."""
        try:
            yield
        finally:
            lease, self._lease = self._lease, None
            if lease is not None:
                await leases.release(self._db, lease)
