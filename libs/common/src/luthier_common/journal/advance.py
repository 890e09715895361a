"""One function moves a thing: a single atomic compare-and-set that also raises `seq` and fills the outbox."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import DELETED, Fact
from luthier_common.contract.ids import draw_hex
from luthier_common.contract.lifecycle import LIFECYCLES, NEW, Lifecycle
from luthier_common.contract.topics import COLLECTIONS, MAX_FACT_BYTES, Kind, partition_of
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import AFTER, DRIVER_ERRORS, Database, Doc, DuplicateKeyError
from luthier_common.kit.telemetry import current_traceparent

MAX_OUTBOX = 500
MAX_OUTBOX_BULK = 400
"""Step facts are refused above this, so that lifecycle facts always find room."""
MAX_OPS = 64
MAX_STRUCK = 16
_TO_BE_TOLD = {"unsent": True, "pend": True}


class Outcome(StrEnum):
    """What became of an advance. Only `applied` changed anything."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    """It was done before: a repeated message, or a write whose reply was lost."""
    STALE = "stale"
    """It belongs to an older attempt."""
    ILLEGAL = "illegal"
    """The life table does not allow it in this phase, or the thing does not exist, or no longer."""
    CHANGED = "changed"
    """The document no longer has the values named in `match`."""
    FULL = "full"
    """Step facts only: the broker is away and the outbox is full; thin them and come again."""


@dataclass(frozen=True)
class Advanced:
    """`doc` is the thing after the call (before it, when not applied), without its outbox; None if it is unknown."""

    outcome: Outcome
    doc: Doc | None

    @property
    def applied(self) -> bool:
        return self.outcome is Outcome.APPLIED

    @property
    def done(self) -> bool:
        """The facts stand, by this call or an earlier one."""
        return self.outcome in (Outcome.APPLIED, Outcome.DUPLICATE)


async def create(
    db: Database,
    fact: Fact,
    thing_id: str,
    fields: Mapping[str, Any],
    *,
    actor: Actor,
    expires_in_s: int | None = None,
) -> Advanced:
    """Insert a thing whose first fact is `fact`. `fields` hold org, project and owner. A known id is a duplicate.

    `expires_in_s` sets `expires_at`, counted from `created_at` exactly: both are times of the database.
    """
    life = LIFECYCLES[fact.kind]
    phase = life.moves([fact])[NEW]
    birth = draw_hex()
    blank = _blank(fact.kind, thing_id, phase, life)
    told: Doc = {"birth": birth, "seq": 1, "ops": [], **_TO_BE_TOLD}
    doc = {"_id": thing_id, **blank, **fields, **fact.remembers(), **told}
    place = {name: doc[name] for name in ("seq", "generation", "attempt")}
    entry = _literal(_entry(fact, actor, is_end=life.is_final(phase)) | place)
    timed: Doc = {"created_at": "$$NOW", "updated_at": "$$NOW", "outbox": [_merged(entry, {"at": "$$NOW"})]}
    if expires_in_s is not None:
        timed["expires_at"] = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": expires_in_s}}
    new = _merged(_literal(doc), timed)
    pipeline: list[Doc] = [{"$replaceWith": {"$cond": [{"$gt": ["$seq", 0]}, "$$ROOT", new]}}]
    collection = db[COLLECTIONS[fact.kind]]
    seen: Doc | None = None
    with contextlib.suppress(DuplicateKeyError, *DRIVER_ERRORS):
        answered = await collection.find_one_and_update(
            {"_id": thing_id}, pipeline, upsert=True, projection={"outbox": 0}, return_document=AFTER
        )
        await failpoint("journal.after_create")
        seen = answered
    if seen is None:
        seen = await collection.find_one({"_id": thing_id}, {"outbox": 0})
    if seen is None:
        raise TransientError("the database did not answer; nothing was created")
    return Advanced(Outcome.APPLIED if seen["birth"] == birth else Outcome.DUPLICATE, seen)


async def advance(
    db: Database,
    kind: Kind,
    thing_id: str,
    facts: Fact | Sequence[Fact],
    *,
    actor: Actor,
    op_id: str | None = None,
    attempt: int | None = None,
    match: Mapping[str, Any] | None = None,
    also: Mapping[str, Any] | None = None,
) -> Advanced:
    """State `facts` of one thing, all or none.

    `op_id` names the deed where the facts have no natural key; stated twice it is done once. `attempt` is required for
    facts of a run. `match` adds conditions (a lease value that was seen); `also` sets fields that no fact carries.
    A lost reply is settled by reading the document again. Raises a driver error or TransientError when the database
    stays away: an answer is never made of what is not known.
    """
    listed = [facts] if isinstance(facts, Fact) else list(facts)
    assert listed, "an advance states something"
    assert all(fact.kind == kind for fact in listed)
    assert attempt is not None or not any(fact.of_a_run for fact in listed), "facts of a run name their attempt"
    life = LIFECYCLES[kind]
    moves = {start: end for start, end in life.moves(listed).items() if start != NEW}
    conditions: list[Doc] = [{"phase": {"$in": list(moves)}, DELETED: {"$ne": True}}, *_news(listed)]
    if attempt is not None:
        conditions.append({"attempt": attempt})
    if op_id is not None:
        conditions.append({"ops": {"$ne": op_id}})
    if match:
        conditions.append(dict(match))
    bulk = all(fact.bulk for fact in listed)
    room_for = {f"outbox.{(MAX_OUTBOX_BULK if bulk else MAX_OUTBOX) - len(listed)}": {"$exists": False}}
    update = _update(listed, actor, moves, life, op_id, attempt, also or {})
    collection = db[COLLECTIONS[kind]]
    query = {"_id": thing_id, "$and": [*conditions, room_for]}
    doc: Doc | None = None
    failure: Exception | None = None
    for _ in range(5):
        failure = None
        try:
            doc = await collection.find_one_and_update(query, update, projection={"outbox": 0}, return_document=AFTER)
            await failpoint("journal.after_advance")
        except DRIVER_ERRORS as error:
            doc, failure = None, error
        if doc is not None:
            return Advanced(Outcome.APPLIED, doc)
        seen = await collection.find_one({"_id": thing_id}, {"outbox": 0})
        outcome = await _why_not(db, kind, seen, moves, conditions, room_for, op_id, attempt, listed, match)
        if outcome is not None:
            return Advanced(outcome, seen)
    if failure is not None:
        raise TransientError("the database did not answer; whether the write happened is not known") from failure
    return Advanced(Outcome.CHANGED, doc)


def _news(facts: Sequence[Fact]) -> list[Doc]:
    """The natural-key condition of the first fact of each type: a batch is ordered, so the first one decides."""
    first: dict[str, Doc] = {}
    for fact in facts:
        first.setdefault(fact.type, fact.unless_done())
    return [condition for condition in first.values() if condition]


async def _why_not(
    db: Database,
    kind: Kind,
    seen: Doc | None,
    moves: Mapping[str, str],
    conditions: Sequence[Doc],
    room_for: Doc,
    op_id: str | None,
    attempt: int | None,
    facts: Sequence[Fact],
    match: Mapping[str, Any] | None,
) -> Outcome | None:
    """Why the write did not match; None when it would match now (the attempt raced or its reply was lost)."""
    if seen is None:
        return Outcome.ILLEGAL
    if op_id is not None and op_id in seen["ops"]:
        return Outcome.DUPLICATE
    collection = db[COLLECTIONS[kind]]

    async def holds(*filters: Doc) -> bool:
        return await collection.find_one({"_id": seen["_id"], "$and": list(filters)}, {"_id": 1}) is not None

    if attempt is not None and seen["attempt"] != attempt:
        return Outcome.STALE
    if (news := _news(facts)) and not await holds(*news):
        return Outcome.DUPLICATE
    if seen["phase"] not in moves or seen.get(DELETED):
        return Outcome.ILLEGAL
    if match and not await holds(dict(match)):
        return Outcome.CHANGED
    if not await holds(room_for):
        return Outcome.FULL
    return None


def _blank(kind: Kind, thing_id: str, phase: str, life: Lifecycle) -> Doc:
    return {
        "phase": phase,
        "status": life.status_of(phase),
        "generation": 1,
        "attempt": 0,
        "part": partition_of(kind, thing_id),
    }


def _update(
    facts: Sequence[Fact],
    actor: Actor,
    moves: Mapping[str, str],
    life: Lifecycle,
    op_id: str | None,
    attempt: int | None,
    also: Mapping[str, Any],
) -> list[Doc]:
    remembered: Doc = {}
    counted: dict[str, int] = {}
    for fact in facts:
        remembered |= fact.remembers()
        for name, by in fact.counts().items():
            counted[name] = counted.get(name, 0) + by
    ends = set(moves.values())
    if len(ends) == 1:
        changed = _phase_fields(next(iter(ends)), life)
    else:
        branches = [{"case": {"$eq": ["$phase", start]}, "then": end} for start, end in moves.items()]
        phase: Doc = {"$switch": {"branches": branches}}
        statuses = [{"case": {"$eq": ["$phase", start]}, "then": life.status_of(end)} for start, end in moves.items()]
        changed = {"phase": phase, "status": {"$switch": {"branches": statuses}}}
    first = (
        {name: _literal(value) for name, value in (remembered | dict(also)).items()}
        | {name: {"$add": [{"$ifNull": [f"${name}", 0]}, by]} for name, by in counted.items()}
        | changed
        | {"updated_at": "$$NOW"}
    )
    if "strikes" in counted:
        # Who decides when and where the next attempt is made must know of the last ones when and where they ended.
        strike = {"at": "$$NOW", "nodes": {"$ifNull": ["$members.node", []]}}
        first["struck"] = {"$slice": [{"$concatArrays": [{"$ifNull": ["$struck", []]}, [strike]]}, -MAX_STRUCK]}
    if op_id is not None:
        first["ops"] = {"$slice": [{"$concatArrays": ["$ops", [{"$literal": op_id}]]}, -MAX_OPS]}
    end_phase = next(iter(ends)) if len(ends) == 1 else None
    return [{"$set": first}, {"$set": _appends(facts, actor, end_phase, life, attempt)}]


def _phase_fields(phase: str, life: Lifecycle) -> Doc:
    fields: Doc = {"phase": phase, "status": life.status_of(phase)}
    if life.is_final(phase):
        fields["finished_at"] = "$$NOW"
    return fields


def _appends(
    facts: Sequence[Fact], actor: Actor, phase: str | None, life: Lifecycle, attempt: int | None = None
) -> Doc:
    """The outbox entries. They read generation and attempt from the document as the facts left them.

    A fact of a run names the attempt of who states it: were it ever another one's, everybody could see it.
    """
    is_final = phase is not None and life.is_final(phase)
    entries = [
        _merged(
            _literal(_entry(fact, actor, is_end=is_final and number == len(facts))),
            {
                "seq": {"$add": ["$seq", number]},
                "at": "$$NOW",
                "generation": "$generation",
                "attempt": _literal(attempt) if fact.of_a_run else "$attempt",
            },
        )
        for number, fact in enumerate(facts, 1)
    ]
    return {
        "outbox": {"$concatArrays": ["$outbox", entries]},
        "seq": {"$add": ["$seq", len(facts)]},
        **_TO_BE_TOLD,
    }


def _entry(fact: Fact, actor: Actor, *, is_end: bool) -> Doc:
    """What an outbox entry holds before it has its place and time.

    Raises ValueError for a fact that is too large: a message that the broker refuses would stop the relay for everyone.
    """
    if len(fact.model_dump_json()) > MAX_FACT_BYTES:
        raise ValueError(f"{fact.type} is larger than a fact may be")
    return {
        "type": fact.type,
        "terminal": is_end,
        "actor": actor.model_dump(mode="json"),
        "trace": current_traceparent(),
        "data": fact.model_dump(mode="json"),
        "partition": None,
        "offset": None,
    }


def _literal(value: Any) -> Doc:
    """A user's text that begins with `$` must never be read as an expression."""
    return {"$literal": value}


def _merged(*docs: Doc) -> Doc:
    return {"$mergeObjects": list(docs)}
