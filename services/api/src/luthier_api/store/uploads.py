"""Uploads: one document each, with its parts inside, so that a part is added or refused in one step."""

from typing import Any

from luthier_api.store.repository import Repository
from luthier_common.kit import ledger
from luthier_common.kit.mongo import AFTER, Database, Doc

COLLECTION = "uploads"
LATE_S = 600
"""An upload that was begun to be completed in time is not taken for expired while its file is put together."""
REMEMBERED_S = 7 * 24 * 3600
PENDING = "pending"
_OVER: Doc = {"$lte": ["$expires_at", "$$NOW"]}


class UploadStore:
    """One principal's uploads. What is not theirs is not found."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._uploads = repository.db[COLLECTION]

    async def create(self, upload_id: str, fields: Doc, *, expiry_s: float) -> Doc:
        owned = {**fields, **self._repository.owned, "status": PENDING, "parts": [], "num_stored_bytes": 0}
        expires_at = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": int(expiry_s)}}
        made = {name: {"$literal": value} for name, value in ({"_id": upload_id} | owned).items()}
        doc = await self._uploads.find_one_and_update(
            {"_id": upload_id},
            [{"$replaceWith": {**made, "created_at": "$$NOW", "expires_at": expires_at}}],
            upsert=True,
            return_document=AFTER,
        )
        assert doc is not None
        return doc

    async def find(self, upload_id: str, *, with_parts: bool) -> Doc | None:
        """The upload; a pending one whose time is over shows as expired. Its parts may be many."""
        shown: Doc = {"$cond": [{"$and": [{"$eq": ["$status", PENDING]}, _OVER]}, "expired", "$status"]}
        fields: Doc = {"$set": {"status": shown} | ({} if with_parts else {"parts": []})}
        rows = self._uploads.aggregate([{"$match": self._mine(upload_id)}, fields])
        found: list[Doc] = await rows.to_list(1)
        return found[0] if found else None

    async def add_part(self, upload_id: str, part: Doc, *, most_bytes: int, most_parts: int) -> Doc | None:
        """Add a stored part to a pending upload, with the time of it; None when it cannot be added any more."""
        added = {**{name: {"$literal": value} for name, value in part.items()}, "created_at": "$$NOW"}
        fits: Doc = {"$lte": ["$num_stored_bytes", most_bytes - part["bytes"]]}
        room: Doc = {f"parts.{most_parts - 1}": {"$exists": False}}
        found = await self._uploads.find_one_and_update(
            {**self._mine(upload_id), **room, "status": PENDING, "$expr": {"$and": [{"$not": [_OVER]}, fits]}},
            [
                {
                    "$set": {
                        "parts": {"$concatArrays": ["$parts", [added]]},
                        "num_stored_bytes": {"$add": ["$num_stored_bytes", part["bytes"]]},
                    }
                }
            ],
            projection={"parts": {"$slice": -1}},
            return_document=AFTER,
        )
        return dict(found["parts"][-1]) if found else None

    async def end(self, upload_id: str, status: str, fields: Doc | None = None) -> Doc | None:
        """Move a pending upload to its end, where its parts are due to be let go; None when it is pending no more."""
        change = {**(fields or {}), "status": status, "is_due": True}
        return await self._uploads.find_one_and_update(
            {**self._mine(upload_id), "status": PENDING}, {"$set": change}, return_document=AFTER
        )

    def _mine(self, upload_id: str) -> Doc:
        return {"_id": upload_id, **self._repository.wall}


async def expire_uploads(db: Database) -> None:
    """End uploads whose time is over."""
    late: Doc = {"$lt": ["$expires_at", {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": LATE_S}}]}
    await db[COLLECTION].update_many(
        {"status": PENDING, "$expr": late}, {"$set": {"status": "expired", "is_due": True}}
    )


async def find_due_uploads(db: Database, most: int) -> list[Doc]:
    """Uploads that have ended and whose parts still are held."""
    return await db[COLLECTION].find({"is_due": True}).limit(most).to_list(most)


async def let_parts_go(db: Database, upload: Doc) -> None:
    """Release the parts' bytes. The upload is remembered for a while, for whoever asks again."""
    if upload["parts"]:
        await ledger.release(db, *(f"part/{part['id']}" for part in upload["parts"]))
    forget_at: Any = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": REMEMBERED_S}}
    await db[COLLECTION].update_one(
        {"_id": upload["_id"], "is_due": True}, [{"$set": {"forget_at": forget_at}}, {"$unset": "is_due"}]
    )
