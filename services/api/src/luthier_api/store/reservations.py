"""What is reserved before it is made: the id of a request's result, so that its repetition finds the same thing."""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier_api.idempotency import Retry
from luthier_common.kit.mongo import AFTER, Database, Doc, hasty, make_missing, update_matching

COLLECTION = "idempotency"
RUNNING, DONE, OPEN = "running", "done", "open"
BELIEVED_S = 30.0
"""Longer than clients rest before they send a request again."""
SLACK_S = 5.0
"""A client's own time runs from a little before its request is reserved."""


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation. `is_ours`: this run is the one that executes it now."""

    core: str
    state: str
    is_ours: bool
    fingerprint: str | None = None
    status: int | None = None
    body: bytes | None = None


class Reservations:
    """Reservations of requests that carry an Idempotency-Key."""

    def __init__(self, db: Database, *, ttl_s: float, lease_s: float) -> None:
        self._db = db
        self._ttl_s = ttl_s
        self._lease_s = lease_s

    async def take(self, name: str, run: str, core: str, fingerprint: str | None) -> Held:
        """Reserve the name, or hear who has it. What nobody runs any more is taken over, with the core that it had."""
        is_free: Doc = {"$lte": [{"$ifNull": ["$expires_at", "$$NOW"]}, "$$NOW"]}
        is_left: Doc = {"$or": [{"$eq": ["$state", OPEN]}, {"$lt": ["$run_until", "$$NOW"]}]}
        is_same: Doc = {"$in": [{"$ifNull": ["$fingerprint", None]}, [None, fingerprint]]}
        may_run: Doc = {"$and": [is_left, {"$ne": ["$state", DONE]}]}
        if fingerprint is not None:
            may_run["$and"].append(is_same)
        runs: Doc = {"$or": [is_free, may_run]}
        changes: Doc = {
            "core": {"$cond": [is_free, core, "$core"]},
            "fingerprint": {"$cond": [is_free, fingerprint, {"$ifNull": ["$fingerprint", fingerprint]}]},
            "state": {"$cond": [runs, RUNNING, "$state"]},
            "run": {"$cond": [runs, run, "$run"]},
            "run_until": {"$cond": [runs, _from_now(self._lease_s), "$run_until"]},
            "status": {"$cond": [is_free, None, "$status"]},
            "body": {"$cond": [is_free, None, "$body"]},
            "expires_at": {"$cond": [is_free, _from_now(self._ttl_s), "$expires_at"]},
        }
        row = await self._db[COLLECTION].find_one_and_update(
            {"_id": name}, [{"$set": changes}], upsert=True, return_document=AFTER
        )
        assert row is not None
        is_ours = row["run"] == run
        return Held(row["core"], row["state"], is_ours, row["fingerprint"], row["status"], row["body"])

    async def renew(self, name: str, run: str) -> None:
        longer = [{"$set": {"run_until": _from_now(self._lease_s)}}]
        await self._db[COLLECTION].update_one({"_id": name, "run": run}, longer)

    async def finish(self, name: str, run: str, fingerprint: str | None, status: int, body: bytes | None) -> None:
        """The answer for every repetition; without a body it was done and cannot be shown again."""
        done = {"state": DONE, "status": status, "body": body}
        await self._end(name, run, fingerprint, done)

    async def leave(self, name: str, run: str, fingerprint: str | None) -> None:
        """The next repetition is executed, with the same core."""
        await self._end(name, run, fingerprint, {"state": OPEN})

    async def _end(self, name: str, run: str, fingerprint: str | None, fields: Doc) -> None:
        if fingerprint is not None:
            fields = fields | {"fingerprint": fingerprint}
        await self._db[COLLECTION].update_one({"_id": name, "run": run}, {"$set": fields})


@dataclass(frozen=True, slots=True)
class Reserved:
    """The core for a request without a key. `former` is the last sending's, which this one is not known to repeat."""

    core: str
    former: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A request without a key, which mostly nobody has sent before."""

    name: str
    core: str
    ttl_s: float
    runs_s: float


async def claim_unknown(db: Database, claims: Sequence[Claim]) -> list[bool]:
    """Reserve, in one write, what nothing is known of; whether each of them was that. The rest is left as it is.

    What is made with the core is written later, durably, and no later write outlives an earlier one: so this one needs
    not be awaited until the journal has it.
    """
    rows = [{"_id": claim.name, "core": claim.core, "former": None, **_begun(claim)} for claim in claims]
    return await make_missing(hasty(db[COLLECTION]), rows)


def _begun(claim: Claim) -> Doc:
    """A sending that is being executed."""
    return {
        "run": claim.core,
        "running_until": _from_now(claim.runs_s),
        "sent_at": "$$NOW",
        "is_answered": False,
        "unanswered_until": None,
        "expires_at": _from_now(claim.ttl_s),
    }


async def reserve_repeat(db: Database, claim: Claim, *, is_repeat: Doc | bool, waits: bool) -> Reserved | None:
    """Reserve by the body: a repetition gets the core of the sending before it, any other request its own.

    None where it `waits` and what became of the sending before is not known yet.
    """
    is_live: Doc = {"$gt": [{"$ifNull": ["$expires_at", "$$NOW"]}, "$$NOW"]}
    is_unanswered: Doc = {"$and": [{"$gt": ["$unanswered_until", "$$NOW"]}, {"$lt": ["$unanswered_from", "$$NOW"]}]}
    is_again: Doc = {"$and": [is_live, {"$or": [is_repeat, is_unanswered]}]}
    is_running: Doc = {"$and": [waits, is_live, {"$not": [is_again]}, {"$gt": ["$running_until", "$$NOW"]}]}
    changes: Doc = {
        "core": {"$cond": [is_again, "$core", claim.core]},
        "former": {"$cond": [{"$and": [is_live, {"$not": [is_again]}]}, "$core", None]},
        **_begun(claim),
    }
    row = await db[COLLECTION].find_one_and_update(
        {"_id": claim.name},
        [{"$set": {field: {"$cond": [is_running, f"${field}", value]} for field, value in changes.items()}}],
        upsert=True,
        return_document=AFTER,
    )
    assert row is not None
    return Reserved(row["core"], row["former"]) if row["run"] == claim.core else None


def is_believed(retry: Retry) -> Doc:
    """Whether a client that says it repeats can mean the sending that is known here, rather than one that never came.

    An answer that went out and was lost is asked for again at once, or when the client has waited for it in vain.
    """
    patience_ms, within_ms = int(retry.patience_s * 1000), int(BELIEVED_S * 1000)
    age: Doc = {"$add": [{"$subtract": ["$$NOW", "$sent_at"]}, int(SLACK_S * 1000)]}
    is_in_time: Doc = {
        "$and": [
            {"$lte": [age, retry.number * patience_ms + within_ms]},
            {"$lte": [{"$mod": [age, patience_ms]}, within_ms]},
        ]
    }
    return {"$or": [{"$not": ["$is_answered"]}, is_in_time]}


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a sending."""

    name: str
    run: str
    is_answered: bool


async def end_repeats(db: Database, ended: Sequence[Ended]) -> list[None]:
    """What became of these sendings is known; nobody waits for it any more.

    If the note is lost, they are like those whose process was killed: others wait until `running_until`.
    """
    changes: list[tuple[Doc, Doc]] = [
        ({"_id": one.name, "run": one.run}, {"$set": {"running_until": None, "is_answered": one.is_answered}})
        for one in ended
    ]
    await update_matching(hasty(db[COLLECTION]), changes)
    return [None] * len(ended)


async def adopt_former(db: Database, name: str, reserved: Reserved) -> None:
    """Nothing was made with the former core: go on with it."""
    await db[COLLECTION].update_one({"_id": name, "core": reserved.core}, {"$set": {"core": reserved.former}})


async def mark_unanswered(db: Database, name: str, core: str, *, from_s: float, for_s: float) -> None:
    """The answer has not reached its client: the same body again is a repetition, from then on and for so long."""
    await db[COLLECTION].update_one(
        {"_id": name, "core": core},
        [{"$set": {"unanswered_from": _from_now(from_s), "unanswered_until": _from_now(for_s)}}],
    )


def _from_now(seconds: float) -> Doc:
    return {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": int(seconds * 1000)}}
