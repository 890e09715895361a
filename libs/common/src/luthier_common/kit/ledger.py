"""The `objects` ledger: every stored object with who refers to it, so that deletion is exact and what is used stays.

Who stores an object for a thing that is not there yet states an intent first (`intend`), stores, records, and then
makes the thing. A crash leaves an intent, or a reference to a thing that was never made: when the deadline has passed
the sweeper looks, and drops both. `sweep` runs in one place, the registry.

References and when they end:
- `file/<id>`: when the file is deleted (its bytes, and the report on it);
- `part/<id>`: when the upload that it belongs to is completed, cancelled or expired;
- `model/<id>`: when the model is deleted; `registering/<job>`: when it is registered, or its job left `trained`;
- `jobs/<file>`: the bytes of a file, while a job that is not deleted names it as training or validation file. Not ended
  by a job's end: a failed or stopped job may be restarted, which reads them again, and a deleted file must not take
  that away. One for all its jobs: their own documents say which they are, so it grows with none of them;
- `job/<id>`: what its runs stored (checkpoints, series, logs). Released when the job is deleted; for a checkpoint or
  artifact that no fact names, when its attempt is over. Rows of an earlier shape have it for the job's files too.
"""

import re
from collections.abc import Collection
from datetime import datetime

from luthier_common.contract.events import DELETED
from luthier_common.contract.lifecycle import HELD
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore

COLLECTION = "objects"
_KEPT: Doc = {DELETED: {"$ne": True}}
SWEEP_AFTER_S = 3600.0
INTENT = "intent/"
JOBS_ON = "jobs/"
SETTLE_S = 600.0
"""Between the record of an object and the thing that it was stored for, a writer may take this long."""
REPORT = ".report.json"
"""The report on a file lies at the file's id and this, wherever its bytes lie."""
_OF_ATTEMPT = re.compile(r"/jobs/(?P<job>[^/]+)/a(?P<attempt>\d+)/(?:step-\d+|(?P<artifact>artifact))/$")
"""What a run stores first and names then."""


async def intend(db: Database, key: str, *, reference: str, within_s: float, org: str, project: str) -> None:
    """Note that an object is about to be stored, to be recorded under this reference within so many seconds."""
    await db[COLLECTION].update_one(
        {"_id": key},
        [
            {
                "$set": {
                    **{name: {"$literal": value} for name, value in (("org", org), ("project", project))},
                    "references": {"$setUnion": [{"$ifNull": ["$references", []]}, [{"$literal": INTENT + reference}]]},
                    "intent_until": _from_now(within_s),
                    "touched_at": "$$NOW",
                }
            }
        ],
        upsert=True,
    )
    await failpoint("ledger.after_intend")


async def fulfil(db: Database, key: str, *, reference: str, sha256: str, num_bytes: int) -> bool:
    """The intended object is stored: refer to it. False when the deadline has passed and its bytes are going."""
    kept = {"$setDifference": ["$references", [{"$literal": INTENT + reference}]]}
    found = await db[COLLECTION].update_one(
        {"_id": key, "references": INTENT + reference, "sweeping": {"$ne": True}},
        [
            {
                "$set": {
                    "sha256": {"$literal": sha256},
                    "bytes": num_bytes,
                    "references": {"$setUnion": [kept, [{"$literal": reference}]]},
                    "intent_until": _from_now(SETTLE_S),
                    "touched_at": "$$NOW",
                }
            }
        ],
    )
    return bool(found.matched_count)


async def abandon(db: Database, objects: ObjectStore, key: str) -> None:
    """An intended object is not wanted after all: its bytes and row go. For a key that nobody else was told."""
    await objects.delete(key)
    await failpoint("ledger.mid_abandon")
    await db[COLLECTION].delete_one({"_id": key})


async def record(
    db: Database, key: str, *, sha256: str, num_bytes: int, org: str, project: str, reference: str
) -> None:
    """Note an object (or a prefix, whose key ends in `/`) and its first reference, such as `file/file-1`.

    A later sweep looks whether the job or file that is referred to is there: who was held up may come after its
    deletion, and a run may store what it can no longer name.
    """
    noted: Doc = {"sha256": sha256, "bytes": num_bytes, "org": org, "project": project}
    looked_at: Doc = {}
    if reference.startswith(("job/", "file/")):
        looked_at["intent_until"] = {"$max": ["$intent_until", _from_now(SETTLE_S)]}
    await db[COLLECTION].update_one(
        {"_id": key},
        [
            {
                "$set": {
                    **{name: {"$literal": value} for name, value in noted.items()},
                    "references": {"$setUnion": [{"$ifNull": ["$references", []]}, [{"$literal": reference}]]},
                    "touched_at": "$$NOW",
                    **looked_at,
                }
            }
        ],
        upsert=True,
    )
    await failpoint("ledger.after_record")


async def settle(db: Database, key: str, *, by: datetime) -> None:
    """The thing that refers to what was noted by then is there, and no sweep has to look whether it is."""
    await db[COLLECTION].update_one({"_id": key, "touched_at": {"$lte": by}}, {"$unset": {"intent_until": ""}})


async def count_bytes(db: Database, org: str, project: str) -> int:
    """What the project's objects take in all, without those that nobody refers to, or that are still being stored."""
    # A reference is a text; asked for as one rather than as anything, the sum is made of the index `held` alone.
    mine: list[Doc] = [
        {"$match": {"org": org, "project": project, "references.0": {"$gt": ""}}},
        {"$group": {"_id": None, "bytes": {"$sum": "$bytes"}}},
    ]
    found = await db[COLLECTION].aggregate(mine).to_list(1)
    return int(found[0]["bytes"]) if found else 0


async def refer(db: Database, key: str, reference: str, *, is_made_later: bool = False) -> bool:
    """Add a reference; False when the object is gone or going.

    `is_made_later`: the thing that refers is about to be made; if it is not, the reference lapses like an intent.
    """
    added: Doc = {
        "references": {"$setUnion": ["$references", [{"$literal": reference}]]},
        "touched_at": "$$NOW",
    }
    if is_made_later:
        added["intent_until"] = {"$max": ["$intent_until", _from_now(SETTLE_S)]}
    found = await db[COLLECTION].update_one({"_id": key, "sweeping": {"$ne": True}}, [{"$set": added}])
    await failpoint("ledger.after_refer")
    return bool(found.matched_count)


async def release(db: Database, *references: str) -> None:
    """Drop references from every object that has them."""
    await failpoint("ledger.before_release")
    await db[COLLECTION].update_many(
        {"references": {"$in": list(references)}},
        {"$pull": {"references": {"$in": list(references)}}, "$currentDate": {"touched_at": True}},
    )


async def release_files(db: Database, file_ids: Collection[str]) -> None:
    """Drop `jobs/<file>` where no job needs the file any more; where one may just be made, the sweep looks later."""
    is_settled = {"$or": [{"intent_until": {"$exists": False}}, {"$expr": {"$lt": ["$intent_until", "$$NOW"]}}]}
    for file_id in file_ids:
        reference = f"{JOBS_ON}{file_id}"
        async for row in db[COLLECTION].find({"references": reference}, {"_id": 1}):
            if not await _is_alive(db, row["_id"], reference):
                dropped: Doc = {"$pull": {"references": reference}, "$currentDate": {"touched_at": True}}
                await db[COLLECTION].update_one({"_id": row["_id"], **is_settled}, dropped)


async def let_go(db: Database, key: str, reference: str) -> None:
    """Drop a reference from one object."""
    dropped: Doc = {"$pull": {"references": reference}, "$currentDate": {"touched_at": True}}
    await db[COLLECTION].update_one({"_id": key}, dropped)


async def referred_to(db: Database, keys: Collection[str], reference: str) -> set[str]:
    """Those of the objects that have this reference."""
    query: Doc = {"_id": {"$in": list(keys)}, "references": reference}
    return {row["_id"] async for row in db[COLLECTION].find(query, {"_id": 1})}


async def sweep(db: Database, objects: ObjectStore, *, older_than_s: float = SWEEP_AFTER_S, most: int = 100) -> int:
    """Delete objects that nothing has referred to for `older_than_s`; the number of ledger rows removed."""
    while await _drop_lapsed(db, most) == most:
        pass
    stale = {"$expr": {"$gt": [{"$subtract": ["$$NOW", "$touched_at"]}, int(older_than_s * 1000)]}}
    removed = 0
    async for row in db[COLLECTION].find({"references": [], **stale}).limit(most):
        claimed = await db[COLLECTION].update_one({"_id": row["_id"], "references": []}, {"$set": {"sweeping": True}})
        if not claimed.matched_count:
            continue
        await failpoint("ledger.after_claim")
        keys = [info.key async for info in objects.list(row["_id"])] if row["_id"].endswith("/") else [row["_id"]]
        for key in keys:
            await objects.delete(key)
        await failpoint("ledger.after_swept")
        await db[COLLECTION].delete_one({"_id": row["_id"], "references": []})
        removed += 1
    return removed


async def _drop_lapsed(db: Database, most: int) -> int:
    """Where a deadline has passed: drop the intents, and references to things that are not there. How many rows."""
    over = {"intent_until": {"$type": "date"}, "$expr": {"$lt": ["$intent_until", "$$NOW"]}}
    rows = await db[COLLECTION].find(over).limit(most).to_list(None)
    for row in rows:
        alive = {text: await _is_alive(db, row["_id"], text) for text in row["references"]}
        dead = [{"$literal": text} for text, is_alive in alive.items() if is_alive is False]
        changed: Doc = {"references": {"$setDifference": ["$references", dead]}, "intent_until": "$$REMOVE"}
        if None in alive.values():
            changed |= {"intent_until": _from_now(SETTLE_S), "touched_at": "$$NOW"}
        await db[COLLECTION].update_one({"_id": row["_id"], **over}, [{"$set": changed}])
    return len(rows)


async def _is_alive(db: Database, key: str, reference: str) -> bool | None:
    """Whether the thing that an object was stored for is there and means this object; None while that is open."""
    kind, _, thing = reference.partition("/")
    at = {"$regex": f"^{re.escape(key)}"} if key.endswith("/") else key
    of_file: Doc = {} if key.endswith(f"/{thing}{REPORT}") else {"object_key": at}
    there: Doc = {"_id": thing, "phase": {"$ne": "deleted"}}
    places: dict[str, list[tuple[str, Doc]]] = {
        "file": [("files", there | of_file), ("uploads", {"file_id": thing, "object_key": at})],
        "part": [("uploads", {"parts.id": thing})],
        "job": [("jobs", {"_id": thing, **_KEPT})],
        "jobs": [
            ("jobs", {"spec.training_file": thing, **_KEPT}),
            ("jobs", {"spec.validation_file": {"$type": "string", "$eq": thing}, **_KEPT}),
        ],
        "model": [("models", there)],
    }
    if reference.startswith(INTENT):
        return False
    if kind not in places:
        return True
    for collection, query in places[kind]:
        if await db[collection].find_one(query, {"_id": 1}) is not None:
            stored = _OF_ATTEMPT.search(key) if kind == "job" else None
            return await _is_named(db, key, stored) if stored and stored["job"] == thing else True
    return False


async def _is_named(db: Database, key: str, stored: re.Match[str]) -> bool | None:
    """Whether a fact of its job names what an attempt stored; None while one still may, or the facts are not all known.

    The event list is read after the outbox: an entry leaves that only when its row is there.
    """
    job_id, attempt = stored["job"], int(stored["attempt"])
    told, name = ("RunFinished", "artifact") if stored["artifact"] else ("CheckpointSaved", "blob")
    job = await db["jobs"].find_one({"_id": job_id}, dict.fromkeys(("phase", "attempt", "seq", "outbox"), 1))
    if job is None:
        return False
    of_job: Doc = {"kind": "job", "thing": job_id}
    if any(entry["type"] == told and entry["data"][name]["key"] == key for entry in job["outbox"]):
        return True
    if await db["events"].find_one({**of_job, "type": told, f"body.data.{name}.key": key}, {"_id": 1}) is not None:
        return True
    # Slots are freed by the node that had the run, when nothing of it can be storing any more.
    held = {"slots": {"$elemMatch": {"holder.job": job_id, "holder.attempt": attempt}}}
    is_over = job["attempt"] > attempt or (job["attempt"] == attempt and job["phase"] not in HELD)
    if not is_over or await db["nodes"].find_one(held, {"_id": 1}) is not None:
        return None
    waiting = [entry["seq"] for entry in job["outbox"]]
    listed = await db["events"].count_documents({**of_job, "seq": {"$lte": job["seq"], "$nin": waiting}})
    return False if listed + len(waiting) >= job["seq"] else None


def _from_now(seconds: float) -> Doc:
    return {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": int(seconds)}}
