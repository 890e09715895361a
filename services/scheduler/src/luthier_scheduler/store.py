"""What the scheduler reads and writes in MongoDB."""

import asyncio
import math
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import Fact, JobFailed, JobPlaced, Problem, QueueReasonChanged
from luthier_common.contract.lifecycle import HELD
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, Outcome, advance
from luthier_common.kit.bases import find_base
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_scheduler.decide import Claim, Placement, TrainerNode, WaitingJob

ACTOR = Actor(room="scheduler")
_POSITIONS_AT_ONCE = 500
_NOW: Doc = {"now": "$$NOW"}
"""The database's time, beside the document as it was read."""
_WAITING: Doc = _NOW | dict.fromkeys(
    ("created_at", "attempt", "strikes", "struck", "queue", "spec.priority", "spec.resources"), 1
)
_HELD_RUN: Doc = dict.fromkeys(("attempt", "last_step", "lease"), 1)


@dataclass(frozen=True)
class HeldRun:
    """An attempt that holds slots. `lease` is the value as it was read."""

    job_id: str
    attempt: int
    last_step: int | None
    lease: Doc | None


@dataclass(frozen=True)
class Snapshot:
    """`is_cut`: more jobs wait than these, which are the first of the queue."""

    waiting: tuple[WaitingJob, ...]
    held: tuple[HeldRun, ...]
    nodes: tuple[TrainerNode, ...]
    """Live trainer nodes that take jobs."""
    renewals: dict[str, Any] = field(default_factory=dict)
    """Of every live node of any role, by its id: the renewal as it was read."""
    is_cut: bool = False


class Store:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def read_snapshot(self, most: int) -> Snapshot:
        """So many of the jobs that wait, those that hold slots, and live nodes."""
        waiting, held, nodes = await asyncio.gather(self._read_head(most + 1), self._read_held(), self._read_nodes())
        return Snapshot(
            waiting=tuple(_waiting(job) for job in waiting[:most]),
            held=tuple(HeldRun(job["_id"], job["attempt"], job.get("last_step"), job.get("lease")) for job in held),
            nodes=tuple(_node(node) for node in nodes if node["role"] == "trainer" and not node.get("draining")),
            renewals={node["_id"]: node.get("renewed_at") for node in nodes},
            is_cut=len(waiting) > most,
        )

    async def _read_head(self, most: int) -> list[Doc]:
        """The first of the queue, in the order in which `decide` goes."""
        order = [("spec.priority", -1), ("created_at", 1), ("_id", 1)]
        return await self._db["jobs"].find({"phase": "waiting"}, _WAITING).sort(order).limit(most).to_list(None)

    async def read_behind(self, head: Collection[WaitingJob], usual: str, most: int) -> tuple[WaitingJob, ...]:
        """So many of the jobs behind the head that are not told the usual reason: first those that were told none.

        Were there more whose own reason is another, a reason that is out of date could hide behind them until its job
        stands in the head.
        """
        query = {"phase": "waiting", "queue.reason": {"$ne": usual}, "_id": {"$nin": [job.id for job in head]}}
        found = self._db["jobs"].find(query, _WAITING).sort([("queue.reason", 1), ("_id", 1)]).limit(most)
        return tuple(_waiting(job) for job in await found.to_list(None))

    async def _read_held(self) -> list[Doc]:
        return await self._db["jobs"].find({"phase": {"$in": HELD}}, _HELD_RUN).to_list(None)

    async def _read_nodes(self) -> list[Doc]:
        fields = ("role", "slots.index", "slots.holder", "draining", "renewed_at", "struck")
        return await self._db["nodes"].find({"phase": "live"}, dict.fromkeys(fields, 1) | _NOW).to_list(None)

    async def read_job(self, job_id: str) -> Doc | None:
        return await self._db["jobs"].find_one({"_id": job_id}, {"outbox": 0})

    async def read_base(self, name: str) -> Doc | None:
        return await find_base(self._db, name)

    async def state_of_job(
        self, job_id: str, fact: Fact, *, attempt: int | None = None, match: Doc | None = None
    ) -> Advanced:
        return await advance(self._db, Kind.JOB, job_id, fact, actor=ACTOR, attempt=attempt, match=match)

    async def tell_reason(self, job_id: str, fact: QueueReasonChanged) -> Advanced:
        """State why a job waits. Reasons come and go, so only the op id tells a write whose answer was lost."""
        op_id = f"reason/{secrets.token_hex(6)}"
        return await advance(self._db, Kind.JOB, job_id, fact, actor=ACTOR, op_id=op_id)

    async def fail_waiting(self, job: Doc, problem: Problem) -> Advanced:
        """End a job as it was read; one that waits no longer, or again, is left alone: other rooms fail jobs too."""
        match = {"phase": "waiting", "attempt": job["attempt"], "generation": job["generation"]}
        return await self.state_of_job(job["_id"], JobFailed(problem=problem), match=match)

    async def fail_exhausted(self, job_id: str, problem: Problem, max_strikes: int) -> Advanced:
        """End a job that still waits with so many strikes."""
        match = {"phase": "waiting", "strikes": {"$gte": max_strikes}}
        return await self.state_of_job(job_id, JobFailed(problem=problem), match=match)

    async def state_of_node(self, node_id: str, fact: Fact, *, match: Doc) -> Advanced:
        return await advance(self._db, Kind.NODE, node_id, fact, actor=ACTOR, match=match)

    async def place(self, placement: Placement, fact: JobPlaced) -> bool:
        """Claim the slots, then state the placement. False when the slots or the job were no longer there.

        Claiming the same slots for the same attempt again succeeds: that is how an interrupted placement goes on.
        """
        token = secrets.token_hex(8)
        if not await self._claim(placement, token):
            return False
        await failpoint("scheduler.after_claim")
        done = await self.state_of_job(placement.job_id, fact)
        await failpoint("scheduler.after_place")
        if done.outcome is not Outcome.APPLIED and done.doc is not None and not _is_owner(done.doc, placement):
            await self._withdraw(placement, token)
        return done.applied

    async def _claim(self, placement: Placement, token: str) -> bool:
        holder = {"job": placement.job_id, "attempt": placement.attempt, "claim": token, "claimed_at": "$$NOW"}
        takeable = [
            {
                "slots": {
                    "$elemMatch": {
                        "index": slot,
                        "$or": [
                            {"holder": None},
                            {"holder.job": placement.job_id, "holder.attempt": placement.attempt},
                        ],
                    }
                }
            }
            for slot in placement.slots
        ]
        query = {"_id": placement.node_id, "phase": "live", "draining": {"$ne": True}, "$and": takeable}
        is_mine = {"$in": ["$$slot.index", list(placement.slots)]}
        claimed = await self._db["nodes"].update_one(query, _set_holder(is_mine, holder))
        return bool(claimed.matched_count)

    async def _withdraw(self, placement: Placement, token: str) -> None:
        """Take back a claim that led to no placement: exactly this one, never one that was made again since."""
        query = {"_id": placement.node_id, "slots.holder.claim": token}
        await self._db["nodes"].update_one(query, _set_holder({"$eq": ["$$slot.holder.claim", token]}, None))

    async def write_positions(self, job_ids: Sequence[str], *, first: int = 1) -> None:
        """Write each job's place in the queue: `job_ids` in their order, counted from `first`. A view, no fact."""
        for start in range(0, len(job_ids), _POSITIONS_AT_ONCE):
            ids = list(job_ids[start : start + _POSITIONS_AT_ONCE])
            ahead = {"$add": [{"$indexOfArray": [{"$literal": ids}, "$_id"]}, start + first - 1]}
            await self._db["jobs"].update_many(
                {"_id": {"$in": ids}, "phase": "waiting", "queue.reason": {"$exists": True}},
                [{"$set": {"queue.position": {"$add": [ahead, 1]}, "queue.num_ahead": ahead}}],
            )


def _is_owner(job: Doc, placement: Placement) -> bool:
    """Whether the attempt may have been placed on exactly these slots, by us or by another scheduler.

    A document of a later attempt no longer says where this one ran: then only the node's supervisor frees.
    """
    if job["attempt"] < placement.attempt:
        return False
    members = [(member["node"], tuple(member["slots"])) for member in job.get("members") or ()]
    return job["attempt"] > placement.attempt or (placement.node_id, placement.slots) in members


def _set_holder(condition: Doc, holder: Doc | None) -> list[Doc]:
    """The holder as given for the slots that meet the condition; `$$NOW` is the only expression in it."""
    value = {name: part if part == "$$NOW" else {"$literal": part} for name, part in holder.items()} if holder else None
    changed = {"$mergeObjects": ["$$slot", {"holder": value}]}
    each = {"input": "$slots", "as": "slot", "in": {"$cond": [condition, changed, "$$slot"]}}
    return [{"$set": {"slots": {"$map": each}}}]


def _waiting(job: Doc) -> WaitingJob:
    queue = job.get("queue") or {}
    spec = job["spec"]
    strikes = job.get("strikes", 0)
    struck = (job.get("struck") or [])[-strikes:] if strikes else []
    return WaitingJob(
        id=job["_id"],
        created_at=job["created_at"],
        num_slots=(spec.get("resources") or {}).get("num_slots", 1),
        priority=spec.get("priority", 0),
        attempt=job["attempt"],
        strikes=strikes,
        struck_ago_s=(job["now"] - struck[-1]["at"]).total_seconds() if struck else math.inf,
        struck_on=frozenset(node for strike in struck for node in strike["nodes"]),
        reason=queue.get("reason"),
        position=queue.get("position"),
    )


def _node(node: Doc) -> TrainerNode:
    claimed: dict[Claim, tuple[int, ...]] = {}
    for slot in node["slots"]:
        if (holder := slot.get("holder")) is not None:
            claim = (holder["job"], holder["attempt"])
            claimed[claim] = (*claimed.get(claim, ()), slot["index"])
    free = tuple(slot["index"] for slot in node["slots"] if slot.get("holder") is None)
    struck = node.get("struck")
    return TrainerNode(
        node["_id"],
        len(node["slots"]),
        free,
        claimed,
        struck_by=tuple(struck["jobs"]) if struck else (),
        struck_ago_s=(node["now"] - struck["at"]).total_seconds() if struck else math.inf,
    )
