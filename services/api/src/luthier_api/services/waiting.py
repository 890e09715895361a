"""What a create reads or says that changes seldom, kept for a moment: base models, waiting jobs, files in use."""

import asyncio
import math
import time

from luthier_api.domain import Principal
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.store import Repository
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.mongo import Database, Doc

BASE_S = 5.0
COUNT_S, ROOMY_COUNT_S = 1.0, 10.0
"""A count is believed so long; longer as long as more than half of the places are free, also of those let in since."""
HELD_S = 60.0
"""Far less than the ledger waits for the job (`SETTLE_S`), so what is left is time enough to make it."""
MAX_KEPT = 10_000
RETRY_AFTER_S = 30


class Bases:
    """The catalogue's entries by name or alias; one that was not there is looked for again each time."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[str, tuple[Doc, float]] = {}

    async def find(self, name: str) -> Doc | None:
        known = self._known.get(name)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        base = await find_base(self._db, name)
        if base is not None:
            if len(self._known) >= MAX_KEPT:
                self._known.clear()
            self._known[name] = base, time.monotonic() + BASE_S
        return base


class InUse:
    """Files that this process has noted as in use by jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._until_s: dict[str, float] = {}

    async def hold(self, file: Doc) -> bool:
        """The file's bytes stay for the job that is about to be made on it; False when they are gone or going."""
        file_id, now_s = file["_id"], time.monotonic()
        if self._until_s.get(file_id, 0.0) > now_s:
            return True
        reference = f"{ledger.JOBS_ON}{file_id}"
        if not await ledger.refer(self._db, file["object_key"], reference, is_made_later=True):
            return False
        if len(self._until_s) >= MAX_KEPT:
            self._until_s.clear()
        self._until_s[file_id] = now_s + HELD_S
        return True


class Queue:
    """What this process knows of the waiting jobs of one project."""

    def __init__(self) -> None:
        self._num_waiting = 0
        """At most so many wait: those of the last count and all that were let in since."""
        self._counted_at_s = -math.inf
        self._num_let_in = 0
        self._num_made = 0
        self._a_job_was_made = asyncio.Event()
        self._counting = asyncio.Lock()

    async def let_in(self, repository: Repository, most: int) -> bool:
        """Whether there is room for one more; if so it is taken, and `made` is to be called."""
        if self._is_stale(most) or self._num_waiting >= most:
            async with self._counting:
                while self._is_stale(most) or self._num_waiting >= most:
                    if await self._count(repository, most) >= most:
                        return False
        self._num_waiting += 1
        self._num_let_in += 1
        return True

    async def take_place(self, repository: Repository, most: int) -> None:
        """As `let_in`; ApiError where there is no room."""
        if not await self.let_in(repository, most):
            message = f"{most} jobs of this project wait already."
            raise ApiError(ErrorCode.TOO_MANY_QUEUED_JOBS, message, headers={"retry-after": str(RETRY_AFTER_S)})

    def made(self) -> None:
        """The job of one that was let in is there, or will never be."""
        self._num_made += 1
        self._a_job_was_made.set()

    def _is_stale(self, most: int) -> bool:
        believed_s = ROOMY_COUNT_S if self._num_waiting < most / 2 else COUNT_S
        return self._counted_at_s + believed_s < time.monotonic()

    async def _count(self, repository: Repository, most: int) -> int:
        """Jobs that surely wait. Where those under way may or may not be among them, it waits for one to be made."""
        num_made = self._num_made
        counted = await repository.count_waiting_jobs(most)
        self._num_waiting = counted + self._num_let_in - num_made
        self._counted_at_s = time.monotonic()
        if counted < most <= self._num_waiting and num_made == self._num_made:
            self._a_job_was_made.clear()
            await self._a_job_was_made.wait()
        return counted


class WaitingRoom:
    """Whether a project may have one more job waiting.

    Between two counts this process adds what it lets in itself, so it never lets too many in; jobs that other
    processes let in meanwhile are seen a second later, or up to ten where more than half of the places seem free.
    Nobody is refused without a fresh count.
    """

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], Queue] = {}

    def queue(self, principal: Principal) -> Queue:
        place = (principal.org, principal.project)
        if place not in self._queues and len(self._queues) >= MAX_KEPT:
            self._queues.clear()
        return self._queues.setdefault(place, Queue())
