"""What wakes the relay: any process has filled an outbox, and so there is something to tell on a partition."""

import asyncio
import logging
from typing import TypeAlias

from luthier_common.contract.topics import COLLECTIONS, TOPICS, Kind, partition_of
from luthier_common.kit.mongo import Database

log = logging.getLogger(__name__)
Place: TypeAlias = tuple[Kind, int]
ALL_PARTS: tuple[Place, ...] = tuple(
    (kind, part) for kind, topic in TOPICS.items() for part in range(topic.num_partitions)
)
_KIND_IN = {collection: kind for kind, collection in COLLECTIONS.items()}


class Wake(asyncio.Event):
    """Set where there may be something to tell, and it knows of which things. Set by hand it names none."""

    def __init__(self) -> None:
        super().__init__()
        self._things: dict[Place, set[str]] = {}

    def tell(self, place: Place, thing: str) -> None:
        self._things.setdefault(place, set()).add(thing)
        self.set()

    def take(self) -> dict[Place, set[str]]:
        """The things that were named since the last call, by partition; it is no longer set."""
        things, self._things = self._things, {}
        self.clear()
        return things


async def wake_on_change(db: Database, wake: Wake) -> None:
    """Set `wake` soon after any process has filled an outbox. A hint only: losing it costs one idle interval."""
    added = {"updateDescription.updatedFields.seq": {"$exists": True}}  # `unsent` may have been true before
    filled = {"$or": [{"operationType": "insert"}, added, {"updateDescription.updatedFields.unsent": True}]}
    seen = [{"$match": {"ns.coll": {"$in": list(COLLECTIONS.values())}, **filled}}]
    while True:
        try:
            async with db.watch([*seen, {"$project": {"ns": 1, "documentKey": 1}}], max_await_time_ms=1000) as stream:
                async for change in stream:
                    kind, thing = _KIND_IN[change["ns"]["coll"]], change["documentKey"]["_id"]
                    wake.tell((kind, partition_of(kind, thing)), thing)
        except Exception as error:
            log.info("the change stream is away: %s", type(error).__name__)
            await asyncio.sleep(1)
