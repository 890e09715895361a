"""Long work beside a loop: a bounded number of tasks, each under a lease, at most one for a thing.

Projects get the places in turn, and one place is always kept from the project that has the others.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count

from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import Database
from luthier_common.kit.room import TRANSIENT_ERRORS, is_transient

log = logging.getLogger(__name__)
PAUSE_AFTER_FAULT_S = 30.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Work that could be done now, by the name of its lease."""

    lease_name: str
    project: str
    work: Callable[[], Awaitable[None]]


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
        self._most_of_one = max(1, limit - 1)
        self._waiting: dict[str, dict[str, Waiting]] = {}
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._projects: dict[str, str] = {}
        self._not_before_s: dict[str, float] = {}
        self._turns = count(1)
        self._last_turns: dict[str, int] = {}

    def offer(self, waiting: Waiting) -> None:
        """Let it wait for a place, unless it is being done, or failed just now."""
        is_paused = self._not_before_s.get(waiting.lease_name, 0.0) > self._clock.monotonic_s()
        queue = self._waiting.setdefault(waiting.project, {})
        if waiting.lease_name not in self._running and not is_paused and len(queue) < self._limit:
            queue[waiting.lease_name] = waiting

    def start(self) -> None:
        """Give the free places to what was offered since the last call; what gets none has to be offered again."""
        while len(self._running) < self._limit and (project := self._next_project()) is not None:
            self._last_turns[project] = next(self._turns)
            queue = self._waiting[project]
            self._begin(queue.pop(next(iter(queue))))
        self._waiting.clear()
        now_s = self._clock.monotonic_s()
        self._not_before_s = {name: until_s for name, until_s in self._not_before_s.items() if until_s > now_s}

    def _next_project(self) -> str | None:
        """Of those that wait the one with the fewest places, then the one that was not served for the longest time."""
        held = Counter(self._projects.values())
        may = [project for project, queue in self._waiting.items() if queue and held[project] < self._most_of_one]
        return min(may, key=lambda project: (held[project], self._last_turns.get(project, 0)), default=None)

    def _begin(self, waiting: Waiting) -> None:
        name = waiting.lease_name
        task = asyncio.create_task(self._work(name, waiting.work), name=name)
        self._running[name] = task
        self._projects[name] = waiting.project
        task.add_done_callback(lambda ended: self._ended(name, ended))

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
        except Exception as error:
            if is_transient(error):
                log.warning("%s is tried again: %s", lease_name, type(error).__name__)
                return False
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
        del self._running[lease_name], self._projects[lease_name]
        if not task.cancelled() and task.result():
            self._wake.set()
