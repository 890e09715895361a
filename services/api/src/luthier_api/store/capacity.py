"""What the installation holds and what waits for it. Of others only numbers."""

from luthier_api.store.repository import Repository
from luthier_common.contract.lifecycle import HELD
from luthier_common.kit.mongo import Doc

OPEN = ("checking", "waiting", *HELD)


class CapacityStore:
    """Reads for one principal."""

    def __init__(self, repository: Repository, *, node_ttl_s: float) -> None:
        self._repository = repository
        self._db = repository.db
        self._node_ttl_s = node_ttl_s

    async def read_trainers(self) -> list[Doc]:
        """Trainer nodes that renew their documents, by name."""
        fresh = {"$lt": [{"$subtract": ["$$NOW", "$renewed_at"]}, int(self._node_ttl_s * 1000)]}
        live: Doc = {"role": "trainer", "phase": "live", "renewed_at": {"$ne": None}, "$expr": fresh}
        fields = dict.fromkeys(("device", "draining", "slots.holder"), 1)
        return await self._db["nodes"].find(live, fields).sort("_id", 1).to_list(None)

    async def count_all(self) -> dict[str, int]:
        """Everybody's open jobs by phase."""
        return await self._count({})

    async def count_own(self) -> dict[str, int]:
        """The principal's open jobs by phase."""
        return await self._count(self._repository.wall)

    async def read_waiting(self, most: int) -> list[Doc]:
        """The principal's waiting jobs, the next one first; those without a place yet last."""
        query = {**self._repository.wall, "phase": "waiting"}
        order: list[Doc] = [
            {"$match": query},
            {"$project": {"phase": 1, "queue": 1, "place": {"$ifNull": ["$queue.position", 2**31]}}},
            {"$sort": {"place": 1, "_id": 1}},
            {"$limit": most},
        ]
        return await self._db["jobs"].aggregate(order).to_list(None)

    async def list_bases(self) -> list[Doc]:
        """What can be tuned."""
        return await self._repository.list_bases()

    async def _count(self, wall: Doc) -> dict[str, int]:
        steps: list[Doc] = [
            {"$match": {**wall, "phase": {"$in": list(OPEN)}}},
            {"$group": {"_id": "$phase", "num": {"$sum": 1}}},
        ]
        return {row["_id"]: row["num"] for row in await self._db["jobs"].aggregate(steps).to_list(None)}
