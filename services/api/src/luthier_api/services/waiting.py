"""What a create reads that changes seldom: the base models, and how many jobs of a project wait. Kept for a moment."""

import time
from dataclasses import dataclass

from luthier_api.domain import Principal
from luthier_api.store import Repository
from luthier_common.kit.bases import find_base
from luthier_common.kit.mongo import Database, Doc

BASE_S = 5.0
COUNT_S = 1.0
MAX_KEPT = 10_000


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


@dataclass(slots=True)
class Queue:
    """What this process knows of the waiting jobs of one project."""

    num_waiting: int = 0
    until_s: float = 0.0
    num_let_in: int = 0
    num_made: int = 0

    async def let_in(self, repository: Repository, most: int) -> bool:
        """Whether there is room for one more; if so it is taken, and `made` is to be called."""
        if self.until_s < time.monotonic() or self.num_waiting >= most:
            num_made = self.num_made
            counted = await repository.count_waiting_jobs(most)
            # Those let in whose jobs may be too young for the count.
            self.num_waiting = counted + self.num_let_in - num_made
            self.until_s = time.monotonic() + COUNT_S
        if self.num_waiting >= most:
            return False
        self.num_waiting += 1
        self.num_let_in += 1
        return True

    def made(self) -> None:
        """The job of one that was let in is there, or will never be."""
        self.num_made += 1


class WaitingRoom:
    """Whether a project may have one more job waiting.

    Between two counts this process adds what it lets in itself, so it never lets too many in; jobs that other
    processes let in meanwhile are seen a second later. Nobody is refused without a fresh count.
    """

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], Queue] = {}

    def queue(self, principal: Principal) -> Queue:
        place = (principal.org, principal.project)
        if place not in self._queues and len(self._queues) >= MAX_KEPT:
            self._queues.clear()
        return self._queues.setdefault(place, Queue())
