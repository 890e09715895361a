"""Which rooms are there, by what they write in database time. For `/readyz` and people; nothing is decided by it."""

from luthier_common.kit.mongo import Database

COLLECTION = "presence"


async def announce(db: Database, room: str, instance: str) -> None:
    """Say that this instance of `room` works now."""
    await db[COLLECTION].update_one(
        {"_id": f"{room}/{instance}"}, [{"$set": {"room": room, "seen_at": "$$NOW"}}], upsert=True
    )


async def is_present(db: Database, room: str, *, within_s: float = 15.0) -> bool:
    """Whether some instance of `room` announced itself within `within_s`."""
    fresh = {"$expr": {"$lt": [{"$subtract": ["$$NOW", "$seen_at"]}, int(within_s * 1000)]}}
    return await db[COLLECTION].find_one({"room": room, **fresh}, {"_id": 1}) is not None


async def leave(db: Database, room: str, instance: str) -> None:
    await db[COLLECTION].delete_one({"_id": f"{room}/{instance}"})
