"""The `objects` ledger: every stored object with who refers to it, so that deletion is exact and what is used stays."""

from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore

COLLECTION = "objects"
SWEEP_AFTER_S = 3600.0


async def record(
    db: Database, key: str, *, sha256: str, num_bytes: int, org: str, project: str, reference: str
) -> None:
    """Note an object (or a prefix, whose key ends in `/`) and its first reference, such as `file/file-1`."""
    await db[COLLECTION].update_one(
        {"_id": key},
        {
            "$set": {"sha256": sha256, "bytes": num_bytes, "org": org, "project": project},
            "$addToSet": {"references": reference},
            "$currentDate": {"touched_at": True},
        },
        upsert=True,
    )


async def refer(db: Database, key: str, reference: str) -> bool:
    """Add a reference; False when the object is gone or going."""
    found = await db[COLLECTION].update_one(
        {"_id": key, "sweeping": {"$ne": True}},
        {"$addToSet": {"references": reference}, "$currentDate": {"touched_at": True}},
    )
    return bool(found.matched_count)


async def release(db: Database, reference: str) -> None:
    """Drop a reference from every object that has it."""
    await db[COLLECTION].update_many(
        {"references": reference}, {"$pull": {"references": reference}, "$currentDate": {"touched_at": True}}
    )


async def sweep(db: Database, objects: ObjectStore, *, older_than_s: float = SWEEP_AFTER_S, most: int = 100) -> int:
    """Delete objects that nothing has referred to for `older_than_s`; the number of ledger rows removed."""
    stale = {"$expr": {"$gt": [{"$subtract": ["$$NOW", "$touched_at"]}, int(older_than_s * 1000)]}}
    removed = 0
    async for row in db[COLLECTION].find({"references": [], **stale}).limit(most):
        claimed = await db[COLLECTION].update_one({"_id": row["_id"], "references": []}, {"$set": {"sweeping": True}})
        if not claimed.matched_count:
            continue
        keys = [info.key async for info in objects.list(row["_id"])] if row["_id"].endswith("/") else [row["_id"]]
        for key in keys:
            await objects.delete(key)
        await db[COLLECTION].delete_one({"_id": row["_id"], "references": []})
        removed += 1
    return removed
