"""Leases: who may work on something now, in database time. A convenience that saves work, never a proof of ownership.

What is decided under a lease is still written by compare-and-set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import AFTER, Database, Doc, DuplicateKeyError, update_matching

COLLECTION = "leases"


@dataclass(frozen=True)
class Lease:
    """A held lease. `epoch` rises whenever the owner changes."""

    name: str
    owner: str
    epoch: int


def _until(ttl_s: float) -> Doc:
    return {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": int(ttl_s * 1000)}}


async def acquire(
    db: Database, name: str, owner: str, ttl_s: float, *, collection: str = COLLECTION, free_for_s: float = 0.0
) -> Lease | None:
    """Take or renew the lease `name`. None while another owner holds it, or did less than `free_for_s` ago."""
    mine = {"$eq": ["$owner", owner]}
    since = {"$subtract": ["$$NOW", int(free_for_s * 1000)]}
    free = {
        "$or": [mine, {"$lt": [{"$ifNull": ["$until", "$$NOW"]}, since]}, {"$eq": [{"$type": "$until"}, "missing"]}]
    }
    taken = {
        "epoch": {"$cond": [mine, "$epoch", {"$add": [{"$ifNull": ["$epoch", 0]}, 1]}]},
        "owner": owner,
        "until": _until(ttl_s),
    }
    grab: list[Doc] = [{"$set": {name: {"$cond": [free, value, f"${name}"]} for name, value in taken.items()}}]
    try:
        doc = await db[collection].find_one_and_update({"_id": name}, grab, upsert=True, return_document=AFTER)
    except DuplicateKeyError:
        return None
    await failpoint("leases.after_acquire")
    return Lease(name, owner, int(doc["epoch"])) if doc and doc["owner"] == owner else None


async def renew(db: Database, held: Sequence[Lease], ttl_s: float, *, collection: str = COLLECTION) -> bool:
    """Renew leases of mine in one round trip; whether all of them were still mine. The others are to be acquired."""
    longer = [{"$set": {"until": _until(ttl_s)}}]
    mine = [{"_id": lease.name, "owner": lease.owner, "epoch": lease.epoch} for lease in held]
    num_renewed = await update_matching(db[collection], [(lease, longer) for lease in mine])
    await failpoint("leases.after_renew")
    return num_renewed == len(held)


async def release(db: Database, lease: Lease, *, collection: str = COLLECTION) -> None:
    """Let the next one in at once. Harmless when the lease was lost meanwhile."""
    await failpoint("leases.before_release")
    gone = [{"$set": {"until": "$$NOW", "owner": None}}]
    await db[collection].update_one({"_id": lease.name, "owner": lease.owner, "epoch": lease.epoch}, gone)
