"""The auditor looks for what relay and projector missed, and only alarms.

A thing of which nothing is missing and nothing waits is noted as whole up to its seq, and passed over until it changes.
"""

import logging
from dataclasses import dataclass

from luthier_common.contract.topics import COLLECTIONS, Kind
from luthier_common.journal.rows import EVENTS
from luthier_common.journal.telemetry import num_findings
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc, update_matching

log = logging.getLogger(__name__)
THINGS_AT_ONCE = 500
WHOLE_TO = "whole_to_seq"


@dataclass(frozen=True)
class Finding:
    """`seqs` of one thing that are neither in the event list nor in its outbox (`hole`), or wait too long (`late`)."""

    kind: Kind
    thing: str
    what: str
    seqs: tuple[int, ...]


async def audit(db: Database, *, older_than_s: float = 60.0) -> list[Finding]:
    """Alarm for entries that have waited longer than `older_than_s` and for holes in things changed since yesterday."""
    findings: list[Finding] = []
    await failpoint("auditor.before_look")
    for kind, name in COLLECTIONS.items():
        late: list[Doc] = [
            # With the partition named, the index of what is pending serves; without it, none does.
            {"$match": {"part": {"$gte": 0}, "pend": True}},
            {"$unwind": "$outbox"},
            {"$match": {"$expr": {"$gt": [{"$subtract": ["$$NOW", "$outbox.at"]}, int(older_than_s * 1000)]}}},
            {"$group": {"_id": "$_id", "seqs": {"$push": "$outbox.seq"}}},
        ]
        rows = await db[name].aggregate(late).to_list(None)
        findings += [Finding(kind, row["_id"], "late", tuple(sorted(row["seqs"]))) for row in rows]
        findings += await _holes(db, kind, name, older_than_s)
    for finding in findings:
        num_findings.add(1, {"what": finding.what})
        log.error("alarm: %s facts of %s %s: %s", finding.what, finding.kind, finding.thing, finding.seqs[:20])
    return findings


async def _holes(db: Database, kind: Kind, name: str, older_than_s: float) -> list[Finding]:
    """Rows are read after the document: an entry leaves the outbox only when its row is there."""
    since, until = ({"$subtract": ["$$NOW", int(age_s * 1000)]} for age_s in (24 * 3600, older_than_s))
    recent: list[Doc] = [{"$gt": ["$updated_at", since]}, {"$lt": ["$updated_at", until]}]
    has_changed: Doc = {"$ne": [f"${WHOLE_TO}", "$seq"]}
    things = db[name].find({"$expr": {"$and": [*recent, has_changed]}}, {"seq": 1, "outbox.seq": 1})
    holes: list[Finding] = []
    while batch := await things.to_list(THINGS_AT_ONCE):
        found = await _holes_of(db, kind, batch)
        holes += found
        await _note_whole(db, name, batch, {finding.thing for finding in found})
    return holes


async def _note_whole(db: Database, name: str, things: list[Doc], holed: set[str]) -> None:
    whole = [thing for thing in things if not thing["outbox"] and thing["_id"] not in holed]
    if whole:
        noted: list[tuple[Doc, Doc]] = [({"_id": doc["_id"]}, {"$set": {WHOLE_TO: doc["seq"]}}) for doc in whole]
        await update_matching(db[name], noted)


async def _holes_of(db: Database, kind: Kind, things: list[Doc]) -> list[Finding]:
    query: Doc = {"kind": str(kind), "thing": {"$in": [thing["_id"] for thing in things]}}
    counted: list[Doc] = [{"$match": query}, {"$group": {"_id": "$thing", "rows": {"$sum": 1}}}]
    num_rows = {row["_id"]: row["rows"] async for row in db[EVENTS].aggregate(counted)}
    holes: list[Finding] = []
    for thing in things:
        waiting = {entry["seq"] for entry in thing["outbox"]}
        if num_rows.get(thing["_id"], 0) + len(waiting) >= thing["seq"]:
            continue
        query = {"kind": str(kind), "thing": thing["_id"]}
        present = {row["seq"] async for row in db[EVENTS].find(query, {"seq": 1})}
        missing = set(range(1, thing["seq"] + 1)) - present - waiting
        if missing:
            holes.append(Finding(kind, thing["_id"], "hole", tuple(sorted(missing))))
    return holes
