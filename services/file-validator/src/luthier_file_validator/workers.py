"""Long work beside a loop: a bounded number of tasks, each under a lease, at most one for a thing.

Projects get the places in turn, and so do a project's small and large files. One place is always kept from large files,
one more from those of a project that has the others with them, and one from the small files of such a project. What
failed rests, each time longer, so that it takes no place from the others.
"""

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count

from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import DRIVER_ERRORS, Database
from luthier_common.kit.rests import Rests
from luthier_common.kit.room import TRANSIENT_ERRORS, is_transient
from luthier_file_validator.checker import CheckFaultError

log = logging.getLogger(__name__)
FIRST_REST_S, MAX_REST_S = 5.0, 600.0
MAX_REST_IN_OUTAGE_S = 30.0
MIN_OFFERS = 20
"""So many of one queue are remembered, or as many as there are places; more are found when these had their turns."""
LARGE_BYTES = 50 * 1024 * 1024
"""More is read for a minute or longer."""


Queue = tuple[str, bool]
"""Where work waits: its project, and whether it is large."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Work that could be done now, by the name of its lease."""

    lease_name: str
    project: str
    num_bytes: int
    """To be read."""
    work: Callable[[], Awaitable[None]]

    @property
    def is_large(self) -> bool:
        return self.num_bytes > LARGE_BYTES


class Workers:
    """`wake` is set when work was done, so that the loop finds what comes next at once."""

    def __init__(
        self, db: Database, clock: Clock, owner: str, wake: asyncio.Event, *, claim_ttl_s: float, limit: int
    ) -> None:
        self._db = db
        self._owner = owner
        self._wake = wake
        self._claim_ttl_s = claim_ttl_s
        self._limit = limit
        self._waiting: dict[Queue, dict[str, Waiting]] = {}
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._queues: dict[str, Queue] = {}
        self._rests = Rests[str](clock, first_s=FIRST_REST_S, most_s=MAX_REST_S)
        self._rests_in_outage = Rests[str](clock, first_s=FIRST_REST_S, most_s=MAX_REST_IN_OUTAGE_S)
        self._turns = count(1)
        self._last_turns: dict[Queue, int] = {}

    def offer(self, waiting: Waiting) -> None:
        """Let it wait for a place, unless it is being done, or failed just now."""
        name, queue = waiting.lease_name, (waiting.project, waiting.is_large)
        is_resting = self._rests.is_resting(name) or self._rests_in_outage.is_resting(name)
        if (
            name not in self._running
            and not is_resting
            and len(self._waiting.get(queue, ())) < max(self._limit, MIN_OFFERS)
        ):
            self._waiting.setdefault(queue, {})[name] = waiting

    def start(self) -> None:
        """Give the free places to what was offered; what gets none waits for the next call."""
        while len(self._running) < self._limit and (queue := self._next_queue()) is not None:
            self._last_turns[queue] = next(self._turns)
            waiting = self._waiting[queue]
            self._begin(waiting.pop(next(iter(waiting))), queue)

    def forget_offers(self) -> None:
        """What waits is about to be offered anew."""
        self._waiting.clear()

    @property
    def has_offers(self) -> bool:
        """Whether something waits for a place."""
        return any(self._waiting.values())

    def _next_queue(self) -> Queue | None:
        """Of those that wait the project with the fewest places, then the one that was not served for longest."""
        places = Counter(project for project, _ in self._queues.values())
        turns: dict[str, int] = {}
        for (project, _), turn in self._last_turns.items():
            turns[project] = max(turn, turns.get(project, 0))

        def rank(queue: Queue) -> tuple[int, int, int]:
            return places[queue[0]], turns.get(queue[0], 0), self._last_turns.get(queue, 0)

        may = (queue for queue, waiting in self._waiting.items() if waiting and self._has_room_for(queue))
        return min(may, key=rank, default=None)

    def _has_room_for(self, queue: Queue) -> bool:
        """Whether it may take a free place: no small file is to wait for large ones, nor a project for one other."""
        held = list(self._queues.values())
        if not queue[1]:
            return held.count(queue) < max(1, self._limit - 1)
        num_large = sum(is_large for _, is_large in held)
        return num_large < max(1, self._limit - 1) and held.count(queue) < max(1, self._limit - 2)

    def _begin(self, waiting: Waiting, queue: Queue) -> None:
        name = waiting.lease_name
        task = asyncio.create_task(self._work(name, waiting.work), name=name)
        self._running[name] = task
        self._queues[name] = queue
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
        except DRIVER_ERRORS as error:
            # The database is away: for all of them.
            log.warning("%s is tried again: %s", lease_name, type(error).__name__)
        except Exception as error:
            rests = self._rests_in_outage if _is_outage(error) else self._rests
            told = {"rest_s": rests.begin(lease_name)}
            if is_transient(error):
                log.warning("%s rests: %s: %s", lease_name, type(error).__name__, error, extra=told)
            else:
                log.exception("%s failed and rests", lease_name, extra=told)
        else:
            self._rests.end(lease_name)
            self._rests_in_outage.end(lease_name)
            return True
        return False

    async def _renew(self, lease_name: str) -> None:
        while True:
            await asyncio.sleep(self._claim_ttl_s / 3)
            with suppress(*TRANSIENT_ERRORS):
                await leases.acquire(self._db, lease_name, self._owner, self._claim_ttl_s)

    def _ended(self, lease_name: str, task: asyncio.Task[bool]) -> None:
        del self._running[lease_name], self._queues[lease_name]
        if not task.cancelled() and task.result():
            self._wake.set()


def _is_outage(error: Exception) -> bool:
    """Whether a server did not answer, which ends for all files at once; not this machine's want of room."""
    is_room = isinstance(error, CheckFaultError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return is_transient(error) and not is_room
