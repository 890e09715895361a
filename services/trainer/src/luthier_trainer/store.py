"""MongoDB as the trainer sees it: its node's document, the jobs placed on it, the usage ledger."""

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import CheckpointSaved, Fact, NodeCapacityChanged, NodeJoined, NodeLeft
from luthier_common.contract.lifecycle import HELD
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, Outcome, advance, create
from luthier_common.journal.rows import EVENTS
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_pinned
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import AFTER, Database, Doc
from luthier_trainer.domain import Claim, NameHolder, NameTakenError
from luthier_trainer.inventory import merge_slots

ACTOR = Actor(room="trainer")
MAX_STRUCK = 8
_OWNED = {"org": "system", "project": "system", "owner": "system"}


class Store:
    """The only place of this room that touches collections.

    `instance` tells this process from others of its name, `home` those from it that may live beside it.
    """

    def __init__(self, db: Database, node: str, home: str) -> None:
        self.db = db
        self.node = node
        self.home = home
        self.instance = secrets.token_hex(8)

    async def join(self, device: str, slots: list[Doc], *, silent: NameHolder | None = None) -> NameHolder | None:
        """State that this node is here with these slots; what is held in its document stays held.

        Nothing is stated while another trainer holds the name: one of another home that has not left, nor was called
        lost, nor is the `silent` one. The answer is who that is.
        """
        fact = NodeJoined(role="trainer", num_slots=len(slots), device=device)
        mine: Doc = {"instance": self.instance, "home": self.home}
        blank: Doc = {**_OWNED, "slots": slots, "bases": [], "adapters": [], "draining": False, "renewed_at": None}
        made = await create(self.db, fact, self.node, blank | mine, actor=ACTOR)
        if made.outcome is not Outcome.DUPLICATE:
            return None
        free: list[Doc] = [{"instance": self.instance}, {"home": self.home}, {"phase": {"$ne": "live"}}]
        if silent is not None:
            free.append({"instance": silent.instance, "renewed_at": silent.renewed_at})
        known = (made.doc or {}).get("slots", [])
        merged = merge_slots(slots, known)
        facts: list[Fact] = [fact]
        if len(slots) != sum(not slot.get("gone") for slot in known):
            facts.append(NodeCapacityChanged(num_slots=len(slots), reason="the node joined with other slots"))
        done = await advance(
            self.db,
            Kind.NODE,
            self.node,
            facts,
            actor=ACTOR,
            op_id=f"join/{secrets.token_hex(4)}",
            match={"slots": known, "$or": free},
            also={"slots": merged, "draining": False, "struck": None, **mine},
        )
        if done.done:
            return None
        other = done.doc or {}
        if done.outcome is Outcome.CHANGED and other.get("home") != self.home and other.get("phase") == "live":
            return NameHolder(other.get("instance"), other.get("renewed_at"))
        raise TransientError(f"the node could not join: {done.outcome}")

    async def renew(self) -> bool:
        """Say in database time that this node lives; False when the database no longer counts it as live.

        NameTakenError when another trainer has joined under its name since.
        """
        found = await self.db["nodes"].update_one({**self._mine, "phase": "live"}, [{"$set": {"renewed_at": "$$NOW"}}])
        if found.matched_count:
            return True
        node = await self.db["nodes"].find_one({"_id": self.node}, {"instance": 1})
        if node is not None and node.get("instance") != self.instance:
            raise NameTakenError(self.node)
        return False

    async def leave(self) -> bool:
        """State an orderly stop; False when this is another trainer's node by now."""
        told = await advance(self.db, Kind.NODE, self.node, NodeLeft(), actor=ACTOR, match=self._mine)
        return told.outcome is not Outcome.CHANGED

    async def read_slots(self) -> tuple[list[Doc], datetime] | None:
        """This node's slots and the database's time; None while the node is unknown, or another trainer's."""
        fields = {"slots": 1, "now": "$$NOW"}
        found = await self.db["nodes"].aggregate([{"$match": self._mine}, {"$project": fields}]).to_list(1)
        return (found[0]["slots"], found[0]["now"]) if found else None

    async def read_jobs(self, job_ids: Sequence[str]) -> dict[str, Doc]:
        """Jobs by id, without their outboxes."""
        found = self.db["jobs"].find({"_id": {"$in": list(job_ids)}}, {"outbox": 0})
        return {job["_id"]: job async for job in found}

    async def renew_lease(self, job_id: str, attempt: int) -> str | None:
        """Renew a run's lease in database time; the reply is what is wanted, None when the attempt is over.

        It is over too when another process holds the lease, be it one of this name.
        """
        mine = {"owner": {"$literal": self.node}, "instance": self.instance, "home": {"$literal": self.home}}
        is_mine = {"$or": [{"lease": None}, {"lease.instance": self.instance}]}
        query = {"_id": job_id, "attempt": attempt, "phase": {"$in": list(HELD)}, **is_mine}
        fields = {"wanted": 1}
        seen: Doc | None = await self.db["jobs"].find_one_and_update(
            query, [{"$set": {"lease": mine | {"renewed_at": "$$NOW"}}}], projection=fields, return_document=AFTER
        )
        await failpoint("trainer.after_lease")
        return None if seen is None else str(seen.get("wanted") or "run")

    async def state(
        self, claim: Claim, facts: Fact | Sequence[Fact], *, op_id: str | None = None, also: Doc | None = None
    ) -> Advanced:
        """State facts of a run; `op_id` is completed with the attempt. Only steps may find the outbox full.

        Everything else must be told in the end: a full outbox is a TransientError, to be tried again.
        """
        op = None if op_id is None else f"{claim.attempt}/{op_id}"
        told = await advance(
            self.db, Kind.JOB, claim.job_id, facts, actor=ACTOR, attempt=claim.attempt, op_id=op, also=also
        )
        listed = [facts] if isinstance(facts, Fact) else facts
        if told.outcome is Outcome.FULL and not all(fact.bulk for fact in listed):
            raise TransientError("the job's outbox is full")
        return told

    async def read_saved_checkpoints(self, job_id: str, *, below_step: int) -> list[CheckpointSaved]:
        """What the job was told of and still refers to, the latest first; each must still be checked.

        The event list is read after the outbox: an entry leaves that only when its row is there.
        """
        job = await self.db["jobs"].find_one({"_id": job_id}, {"outbox": 1})
        waiting = (entry for entry in (job or {}).get("outbox", []) if entry["type"] == CheckpointSaved.__name__)
        told = {entry["seq"]: entry["data"] for entry in waiting}
        query = {"kind": str(Kind.JOB), "thing": job_id, "type": CheckpointSaved.__name__}
        rows = self.db[EVENTS].find(query, {"seq": 1, "body.data": 1})
        told |= {row["seq"]: row["body"]["data"] async for row in rows}
        saved = [CheckpointSaved.model_validate(data) for data in told.values()]
        older = [one for one in saved if one.step < below_step]
        kept = await ledger.referred_to(self.db, [one.blob.key for one in older], f"job/{job_id}")
        return sorted(
            (one for one in older if one.blob.key in kept), key=lambda one: (one.step, one.attempt), reverse=True
        )

    async def free(self, claim: Claim, *, works: bool | None = None) -> None:
        """Write the usage ledger, then free what an attempt that is over held here. Done twice it changes nothing.

        `works` is what the run told of this node (`domain.tells_of_node`); the scheduler has it rest by that.
        """
        await failpoint("trainer.before_free")
        job = await self.db["jobs"].find_one({"_id": claim.job_id}, {"outbox": 0})
        # Whoever has the node by now has the slots too, and books them when it frees them.
        if job is not None and await self._holds(claim):
            await self._book(claim, job)
        await failpoint("trainer.after_usage")
        is_held = _is_held_for(claim)
        changed: Doc = {"slots": _without_holder(is_held)}
        if works is not None:
            is_first = {"$anyElementTrue": {"$map": {"input": "$slots", "as": "slot", "in": is_held}}}
            changed["struck"] = {"$cond": [is_first, None if works else _one_more(claim.job_id), "$struck"]}
        await self.db["nodes"].update_one(self._mine, [{"$set": changed}])
        await failpoint("trainer.after_free")

    async def withdraw(self, claim: Claim) -> None:
        """Free a claim that led to no placement: exactly this one, never one that was made again since. No bill."""
        is_this = {"$eq": [{"$ifNull": ["$$slot.holder.claim", None]}, claim.token]}
        slots = _without_holder({"$and": [_is_held_for(claim), is_this]})
        await self.db["nodes"].update_one(self._mine, [{"$set": {"slots": slots}}])

    @property
    def _mine(self) -> Doc:
        """The node's document while it is this process's."""
        return {"_id": self.node, "instance": self.instance}

    async def _holds(self, claim: Claim) -> bool:
        held = {"$elemMatch": {"holder.job": claim.job_id, "holder.attempt": claim.attempt}}
        return await self.db["nodes"].find_one({**self._mine, "slots": held}, {"_id": 1}) is not None

    async def _book(self, claim: Claim, job: Doc) -> None:
        """The usage ledger's row of a claim; the first one stays."""
        row: dict[str, Any] = {
            "job": claim.job_id,
            "attempt": claim.attempt,
            "node": self.node,
            "slots": list(claim.slots),
            "from": claim.claimed_at,
            "org": job.get("org"),
            "project": job.get("project"),
        }
        literals = {name: {"$literal": value} for name, value in row.items()}
        key = f"{claim.job_id}/a{claim.attempt}/{self.node}/{claim.token}"
        await self.db["usage"].update_one(
            {"_id": key}, [{"$set": {**literals, "to": {"$ifNull": ["$to", "$$NOW"]}}}], upsert=True
        )

    async def read_file(self, file_id: str) -> Doc | None:
        """Where a file's bytes are and what they hash to."""
        return await self.db["files"].find_one({"_id": file_id}, {"object_key": 1, "sha256": 1, "phase": 1})

    async def read_base(self, digest: str) -> Doc | None:
        """The catalogue's bundle with this digest, also when another one has taken its name since."""
        return await find_pinned(self.db, digest)

    async def note_objects(self, key: str, sha256: str, num_bytes: int, claim: Claim, org: str, project: str) -> None:
        """The ledger's row for a prefix of this run."""
        await ledger.record(
            self.db, key, sha256=sha256, num_bytes=num_bytes, org=org, project=project, reference=f"job/{claim.job_id}"
        )

    async def let_go(self, key: str, claim: Claim) -> None:
        """The job no longer needs what lies under this key: the sweeper removes it, unless somebody else does."""
        await ledger.let_go(self.db, key, f"job/{claim.job_id}")


def _is_held_for(claim: Claim) -> Doc:
    """Of `$$slot`."""
    return {"$and": [{"$eq": ["$$slot.holder.job", claim.job_id]}, {"$eq": ["$$slot.holder.attempt", claim.attempt]}]}


def _without_holder(is_meant: Doc) -> Doc:
    """The slots, those that are meant without their holder; one that is free and whose device is gone goes."""
    freed = {"$cond": [is_meant, {"$mergeObjects": ["$$slot", {"holder": None}]}, "$$slot"]}
    is_kept = {"$or": [{"$ne": ["$$slot.gone", True]}, {"$ne": ["$$slot.holder", None]}]}
    each = {"$map": {"input": "$slots", "as": "slot", "in": freed}}
    return {"$filter": {"input": each, "as": "slot", "cond": is_kept}}


def _one_more(job_id: str) -> Doc:
    """The failed runs of a node with another one, of this job."""
    jobs = {"$concatArrays": [{"$ifNull": ["$struck.jobs", []]}, [{"$literal": job_id}]]}
    return {"jobs": {"$slice": [jobs, -MAX_STRUCK]}, "at": "$$NOW"}
