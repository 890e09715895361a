"""All that an installation keeps, to be compared: every document, and the digest of every object."""

import hashlib
from typing import Any

from luthier_common.kit.mongo import Doc, open_mongo
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_stack.stack import Stack

OF_THE_MOMENT = ("positions", "leases", "presence", "rate_windows")
"""Who works on what just now, and where former topics were read: nobody misses it."""
Kept = dict[tuple[str, Any], Any]
"""Documents by collection and id; digests by the collection `bytes` and the object's key."""


async def all_kept(stack: Stack) -> Kept:
    """All but what is of the moment, what is still to be told, and objects that nobody needs."""
    found: Kept = {}
    async with open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db:
        for name in await db.list_collection_names():
            if name not in OF_THE_MOMENT and not name.startswith("system."):
                found |= {(name, doc["_id"]): doc async for doc in db[name].find({"pend": {"$ne": True}})}
    del found["meta", "installation"]  # its incarnation rises
    ledger = [doc for (name, _), doc in found.items() if name == "objects"]
    async with open_objects(stack.env["LUTHIER_OBJECTS_URL"]) as objects:
        for row in ledger:
            found |= {("bytes", key): await _digest(objects, key) for key in await _keys_of(objects, row)}
    return found


def constant(before: Kept, after: Kept) -> Kept:
    """What was the same at both moments."""
    return {place: value for place, value in before.items() if after.get(place) == value}


def differing(wanted: Kept, found: Kept) -> list[str]:
    places = [place for place, value in wanted.items() if found.get(place) != value]
    return [f"{place[0]}/{place[1]} was {wanted[place]}, is {found.get(place)}" for place in places]


async def _keys_of(objects: ObjectStore, row: Doc) -> list[str]:
    if all(reference.startswith("intent/") for reference in row["references"]):
        return []
    return [info.key async for info in objects.list(row["_id"])] if row["_id"].endswith("/") else [row["_id"]]


async def _digest(objects: ObjectStore, key: str) -> str:
    return hashlib.sha256(await objects.read(key)).hexdigest()
