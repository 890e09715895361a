"""What a create reads that changes seldom: the base models, and how many jobs of a project wait. Kept for a moment."""

import time
from dataclasses import dataclass

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
class _Count:
    num_waiting: int
    until_s: float


class WaitingRoom:
    """Whether a project may have one more job waiting.

    Between two counts this process adds what it lets in itself, so it never lets too many in; jobs that other
    processes let in meanwhile are seen a second later. Nobody is refused without a fresh count.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Count] = {}

    async def has_room(self, repository: Repository, most: int) -> bool:
        who = repository.principal
        place = (who.org, who.project)
        count = self._counts.get(place)
        if count is None or count.until_s < time.monotonic() or count.num_waiting >= most:
            count = _Count(await repository.count_waiting_jobs(most), time.monotonic() + COUNT_S)
            if len(self._counts) >= MAX_KEPT:
                self._counts.clear()
            self._counts[place] = count
        count.num_waiting += 1
        return count.num_waiting <= most
