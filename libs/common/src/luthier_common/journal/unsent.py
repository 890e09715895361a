"""What waits in outboxes to be told: where to look for it, and the envelopes that it goes out in."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from luthier_common.contract.envelope import Actor, Envelope
from luthier_common.contract.topics import COLLECTIONS, Kind
from luthier_common.journal.wake import ALL_PARTS, Place
from luthier_common.kit.mongo import Database, Doc

MAX_THINGS = 120
"""Found at once of one partition."""
Asked = Mapping[Place, Collection[str] | None]
"""Where to look, and for which things; None: for all that wait there."""
EVERYWHERE: Asked = dict.fromkeys(ALL_PARTS)


def also_asked(before: Asked, asked: Asked) -> dict[Place, Collection[str] | None]:
    """Both; too many things of a partition are all of it."""
    both = dict(before)
    for place, things in asked.items():
        known = both.get(place, ())
        together = None if things is None or known is None else {*known, *things}
        both[place] = None if together is None or len(together) > MAX_THINGS else together
    return both


async def find_unsent(db: Database, asked: Asked) -> dict[Place, list[Doc]]:
    """Things with their entries that have no place in a topic: those that are named, and all of other partitions."""
    named: dict[Kind, list[str]] = defaultdict(list)
    for (kind, _), things in asked.items():
        named[kind] += things or ()
    searches = [_find_named(db, kind, things) for kind, things in named.items() if things]
    if places := [place for place, things in asked.items() if things is None]:
        searches.append(_find_all(db, places))
    found: dict[Place, list[Doc]] = defaultdict(list)
    for thing in itertools.chain.from_iterable(await asyncio.gather(*searches)):
        found[(Kind(thing["kind"]), int(thing["part"]))].append(thing)
    return found


async def _find_named(db: Database, kind: Kind, things: list[str]) -> list[Doc]:
    waiting = {"_id": {"$in": things}, "unsent": True}
    return await db[COLLECTIONS[kind]].find(waiting, _fields(kind)).to_list(None)


async def _find_all(db: Database, places: list[Place]) -> list[Doc]:
    """In one round trip. So many of each: what waits where nothing can be sent never hides what waits elsewhere."""
    (first, *others) = places
    united = [{"$unionWith": {"coll": COLLECTIONS[other[0]], "pipeline": _finding(other)}} for other in others]
    return await db[COLLECTIONS[first[0]]].aggregate([*_finding(first), *united]).to_list(None)


def _finding(place: Place) -> list[Doc]:
    kind, part = place
    return [{"$match": {"part": part, "unsent": True}}, {"$limit": MAX_THINGS}, {"$project": _fields(kind)}]


def _fields(kind: Kind) -> Doc:
    unsent: Doc = {"$filter": {"input": "$outbox", "as": "e", "cond": {"$eq": ["$$e.offset", None]}}}
    return {"kind": {"$literal": str(kind)}, "org": 1, "project": 1, "part": 1, "outbox": unsent}


def envelopes_of(place: Place, things: list[Doc], known: frozenset[str]) -> list[Envelope]:
    """In order for each thing, without those that were sent and whose places are only not written yet."""
    kind = place[0]
    return [
        envelope_of(kind, thing, entry)
        for thing in things
        for entry in sorted(thing["outbox"], key=_seq)
        if f"{kind}/{thing['_id']}/{entry['seq']}" not in known
    ]


def envelope_of(kind: Kind, thing: Doc, entry: dict[str, Any]) -> Envelope:
    return Envelope(
        kind=kind,
        thing=thing["_id"],
        seq=entry["seq"],
        type=entry["type"],
        at=entry["at"],
        generation=entry["generation"],
        attempt=entry["attempt"],
        org=thing["org"],
        project=thing["project"],
        actor=Actor.model_validate(entry["actor"]),
        terminal=entry["terminal"],
        trace=entry["trace"],
        data=entry["data"],
    )


def _seq(entry: Doc) -> int:
    return int(entry["seq"])
