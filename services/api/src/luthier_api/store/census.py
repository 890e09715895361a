"""Numbers of the whole installation, for those who run it. Every query is bounded by what is live, or rare."""

from collections.abc import Collection

from luthier_common.contract.topics import COLLECTIONS
from luthier_common.kit.mongo import Database, Doc

PRESENT_WITHIN_S = 15


class Census:
    """Reads for nobody in particular."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def count_jobs(self, phases: Collection[str]) -> dict[str, int]:
        """Jobs in these phases; a phase without any is left out."""
        steps: list[Doc] = [
            {"$match": {"phase": {"$in": list(phases)}}},
            {"$group": {"_id": "$phase", "num": {"$sum": 1}}},
        ]
        return {row["_id"]: row["num"] for row in await self._db["jobs"].aggregate(steps).to_list(None)}

    async def oldest_wait_s(self) -> float:
        """How long the job that has waited longest has been as it is; 0 when none waits."""
        steps: list[Doc] = [
            {"$match": {"phase": "waiting"}},
            {"$group": {"_id": None, "since": {"$min": "$updated_at"}}},
            {"$project": {"age_ms": {"$subtract": ["$$NOW", "$since"]}}},
        ]
        found = await self._db["jobs"].aggregate(steps).to_list(1)
        return max(0.0, found[0]["age_ms"] / 1000) if found else 0.0

    async def measure_outboxes(self) -> dict[str, tuple[int, float]]:
        """By kind: facts that wait, and the age of the oldest in seconds."""
        measured: dict[str, tuple[int, float]] = {}
        for kind, name in COLLECTIONS.items():
            steps: list[Doc] = [
                # With the partition named, the index of what is pending serves; without it, none does.
                {"$match": {"part": {"$gte": 0}, "pend": True}},
                {"$project": {"depth": {"$size": "$outbox"}, "since": {"$min": "$outbox.at"}}},
                {"$group": {"_id": None, "depth": {"$sum": "$depth"}, "since": {"$min": "$since"}}},
                {"$project": {"depth": 1, "age_ms": {"$subtract": ["$$NOW", "$since"]}}},
            ]
            found = await self._db[name].aggregate(steps).to_list(1)
            depth, age_ms = (found[0]["depth"], found[0]["age_ms"] or 0) if found else (0, 0)
            measured[str(kind)] = (depth, max(0.0, age_ms / 1000))
        return measured

    async def list_nodes(self) -> list[Doc]:
        """Nodes that live or were lost, with their slots' holders."""
        fields = dict.fromkeys(("role", "phase", "device", "draining", "slots.holder"), 1)
        return await self._db["nodes"].find({"phase": {"$in": ["live", "lost"]}}, fields).to_list(None)

    async def count_rooms(self) -> dict[str, int]:
        """Instances of each room that announced themselves within 15 s."""
        fresh = {"$expr": {"$lt": [{"$subtract": ["$$NOW", "$seen_at"]}, PRESENT_WITHIN_S * 1000]}}
        steps: list[Doc] = [{"$match": fresh}, {"$group": {"_id": "$room", "num": {"$sum": 1}}}]
        return {row["_id"]: row["num"] for row in await self._db["presence"].aggregate(steps).to_list(None)}

    async def measure_objects(self) -> tuple[int, int]:
        """How many rows the ledger of objects has, and their bytes."""
        steps: list[Doc] = [{"$group": {"_id": None, "num": {"$sum": 1}, "bytes": {"$sum": "$bytes"}}}]
        found = await self._db["objects"].aggregate(steps).to_list(1)
        return (found[0]["num"], found[0]["bytes"]) if found else (0, 0)
