"""Which rooms are there, by what they write in database time. For `/readyz` and people, and a hint for fair shares."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import Database, Doc

Thing = TypeVar("Thing")
Sort = TypeVar("Sort", bound=Hashable)
COLLECTION = "presence"
MODEST_S = 60.0
MOST_MODEST_S = 600.0
"""Who could not do its work is modest for a while, longer each time: others may be able to."""


class Reach:
    """Whether a server can be reached, by what was tried: the time in which a process stood still says nothing."""

    def __init__(self, clock: Clock, *, within_s: float) -> None:
        self._clock = clock
        self._within_s = within_s
        self._missed_at_s: float | None = None

    def found(self) -> None:
        self._missed_at_s = None

    def missed(self) -> bool:
        """It did not answer; whether that has been so for longer than `within_s`, each time that it was tried."""
        now_s = self._clock.monotonic_s()
        if self._missed_at_s is None:
            self._missed_at_s = now_s
        return now_s - self._missed_at_s > self._within_s


async def announce(db: Database, room: str, instance: str, *, trouble: str | None = None) -> None:
    """Say that this instance of `room` works now, and by a code what keeps it from its most important work."""
    said = {"room": room, "seen_at": "$$NOW", "trouble": trouble}
    await db[COLLECTION].update_one({"_id": f"{room}/{instance}"}, [{"$set": said}], upsert=True)


async def is_present(db: Database, room: str, *, within_s: float = 15.0) -> bool:
    """Whether some instance of `room` announced itself within `within_s`."""
    return await db[COLLECTION].find_one(_fresh(room, within_s), {"_id": 1}) is not None


async def troubles(db: Database, room: str, *, within_s: float = 15.0) -> list[str | None]:
    """What each instance of `room` that announced itself within `within_s` is kept from its work by, if anything."""
    return [row.get("trouble") async for row in db[COLLECTION].find(_fresh(room, within_s), {"trouble": 1})]


async def claim_share(
    db: Database, room: str, instance: str, sorts: Sequence[Sort], *, within_s: float, is_modest: bool
) -> Counter[Sort]:
    """Announce, and say how many of each sort fall to this one of the instances that did so within `within_s`.

    `sorts` names the sort of each thing there is: all instances have equally many, and equally many of each sort, give
    or take one. A modest one does not announce itself, and leaves all to the others where there are any.
    """
    await (leave if is_modest else announce)(db, room, instance)
    present = sorted([row["_id"] async for row in db[COLLECTION].find(_fresh(room, within_s), {"_id": 1})])
    mine = f"{room}/{instance}"
    if mine not in present:
        return Counter() if is_modest and present else Counter(sorts)
    return Counter(sorts[present.index(mine) :: len(present)])


def beyond(share: Mapping[Sort, int], held: Mapping[Thing, Sort]) -> list[Thing]:
    """What of `held`, which names the sort of each thing, is more than the share of its sort: the first ones.

    What was taken last may be what another one could not work on, and would only leave again.
    """
    more = Counter(held.values()) - Counter(share)
    given_up = []
    for thing, sort in held.items():
        if more[sort] > 0:
            more[sort] -= 1
            given_up.append(thing)
    return given_up


async def leave(db: Database, room: str, instance: str) -> None:
    await db[COLLECTION].delete_one({"_id": f"{room}/{instance}"})


def _fresh(room: str, within_s: float) -> Doc:
    return {"room": room, "$expr": {"$lt": [{"$subtract": ["$$NOW", "$seen_at"]}, int(within_s * 1000)]}}
