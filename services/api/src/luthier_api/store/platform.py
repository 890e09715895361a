"""What belongs to nobody: nodes, the scheduler's lease, and files whose time has come."""

from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database, Doc

RELEASE_DUE = "release_due"
END_OF_FILE: Doc = {RELEASE_DUE: True, "expires_at": None}
"""What a deletion sets: bytes are to be let go, and there is nothing left that could expire."""


class PlatformStore:
    """What belongs to nobody: nodes, the scheduler's lease, and files whose time has come."""

    def __init__(self, db: Database, *, node_ttl_s: float) -> None:
        self._db = db
        self._node_ttl_s = node_ttl_s

    async def find_engines(self, base: str) -> dict[str, str]:
        """Live inference nodes that can answer for a base now, with their addresses."""
        fresh = {"$lt": [{"$subtract": ["$$NOW", "$renewed_at"]}, int(self._node_ttl_s * 1000)]}
        live: Doc = {"role": "inference", "phase": "live", "draining": {"$ne": True}, "bases": base}
        known: Doc = {"address": {"$ne": None}, "renewed_at": {"$ne": None}, "$expr": fresh}
        return {
            node["_id"]: node["address"] async for node in self._db["nodes"].find({**live, **known}, {"address": 1})
        }

    async def has_trainer(self) -> bool:
        live: Doc = {"role": "trainer", "phase": "live", "draining": {"$ne": True}}
        return await self._db["nodes"].find_one(live, {"_id": 1}) is not None

    async def has_scheduler(self) -> bool:
        held = {"_id": "scheduler", "owner": {"$ne": None}, "$expr": {"$gt": ["$until", "$$NOW"]}}
        return await self._db["leases"].find_one(held, {"_id": 1}) is not None

    async def find_expired_files(self, most: int) -> list[str]:
        is_over = {"$expr": {"$lt": ["$expires_at", "$$NOW"]}}
        return await self._ids({"phase": {"$ne": "deleted"}, "expires_at": {"$type": "date"}, **is_over}, most)

    async def find_unreleased_files(self, most: int) -> list[str]:
        """Deleted files whose bytes a crash kept from being let go."""
        return await self._ids({RELEASE_DUE: True}, most)

    async def _ids(self, query: Doc, most: int) -> list[str]:
        return [file["_id"] async for file in self._db["files"].find(query, {"_id": 1}).limit(most)]


async def release_bytes(db: Database, file_id: str) -> None:
    """Let go of a deleted file's bytes; the sweep repeats it where a crash came between."""
    await ledger.release(db, f"file/{file_id}")
    await db["files"].update_one({"_id": file_id, "phase": "deleted"}, {"$unset": {RELEASE_DUE: ""}})
