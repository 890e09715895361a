"""Long work beside a loop: a bounded number of tasks, each under a lease, at most one for a thing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import Database
from luthier_common.kit.room import TRANSIENT_ERRORS

log = logging.getLogger(__name__)
PAUSE_AFTER_FAULT_S = 30.0


class Workers:
    """`wake` is set when work was done, so that the loop finds what comes next at once."""

    def __init__(
        self, db: Database, clock: Clock, owner: str, wake: asyncio.Event, *, claim_ttl_s: float, limit: int
    ) -> None:
        self._db = db
        self._clock = clock
        self._owner = owner
        self._wake = wake
        self._claim_ttl_s = claim_ttl_s
        self._limit = limit
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._not_before_s: dict[str, float] = {}

    @property
    def is_full(self) -> bool:
        return len(self._running) >= self._limit

    def start(self, lease_name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` under the lease, unless it is being done, another instance holds it, or it failed just now."""
        is_paused = self._not_before_s.get(lease_name, 0.0) > self._clock.monotonic_s()
        if lease_name in self._running or self.is_full or is_paused:
            return
        task = asyncio.create_task(self._work(lease_name, work), name=lease_name)
        self._running[lease_name] = task
        task.add_done_callback(lambda ended: self._ended(lease_name, ended))

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Cancels what still runs when the block ends; whoever comes next does it again."""
        try:
            yield
        finally:
            for task in list(self._running.values()):
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _work(self, lease_name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether it was done."""
        try:
            lease = await leases.acquire(self._db, lease_name, self._owner, self._claim_ttl_s)
            if lease is None:
                return False
            renewal = asyncio.create_task(self._renew(lease_name))
            try:
                await work()
            finally:
                renewal.cancel()
                await leases.release(self._db, lease)
            self._not_before_s.pop(lease_name, None)
        except TRANSIENT_ERRORS as error:
            log.warning("%s is tried again: %s", lease_name, type(error).__name__)
        except Exception:
            log.exception("%s failed and rests", lease_name)
            self._not_before_s[lease_name] = self._clock.monotonic_s() + PAUSE_AFTER_FAULT_S
        else:
            return True
        return False

    async def _renew(self, lease_name: str) -> None:
        while True:
            await asyncio.sleep(self._claim_ttl_s / 3)
            with suppress(*TRANSIENT_ERRORS):
                await leases.acquire(self._db, lease_name, self._owner, self._claim_ttl_s)

    def _ended(self, lease_name: str, task: asyncio.Task[bool]) -> None:
        del self._running[lease_name]
        if not task.cancelled() and task.result():
            self._wake.set()
