"""MongoDB as this room sees it: its own node document, the catalogue of bases, and jobs whose model must be tried."""

import re
import secrets
from collections.abc import Collection, Sequence

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import DELETED, JobFact, NodeJoined, NodeLeft
from luthier_common.contract.ids import JOB_PREFIX
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, Outcome, advance, create
from luthier_common.kit.mongo import Database, Doc

ACTOR = Actor(room="inference")
_CHECKPOINT = re.compile(r"ftckpt_(?P<core>[0-9a-f]{24})\d{6,}")
_OWNED = {"org": "system", "project": "system", "owner": "system"}


class InferenceStore:
    """The only place of this room that touches collections."""

    def __init__(self, db: Database, node: str) -> None:
        self.db = db
        self.node = node

    async def join(self, device: str, address: str) -> None:
        """State that this node is here, at this address."""
        fact = NodeJoined(role="inference", num_slots=0, device=device, address=address)
        blank: Doc = {**_OWNED, "slots": [], "bases": [], "adapters": [], "draining": False, "renewed_at": None}
        made = await create(self.db, fact, self.node, blank, actor=ACTOR)
        if made.outcome is Outcome.DUPLICATE:
            also = {"slots": [], "bases": [], "adapters": [], "draining": False}
            # A live node may join again: only the op id tells a write whose answer was lost.
            op_id = f"join/{secrets.token_hex(4)}"
            await advance(self.db, Kind.NODE, self.node, fact, actor=ACTOR, op_id=op_id, also=also)

    async def renew(
        self, bases: Sequence[str], resting: Sequence[str], adapters: Sequence[str], device: str, *, is_draining: bool
    ) -> bool:
        """Say in database time that this node lives, and what it serves; False when it is not live in the database.

        Nobody asks it for the bases that are `resting`, or a draining one for anything.
        """
        said: Doc = {"bases": list(bases), "resting": list(resting), "adapters": list(adapters)}
        said |= {"device": device, "draining": is_draining}
        literals = {name: {"$literal": value} for name, value in said.items()}
        found = await self.db["nodes"].update_one(
            {"_id": self.node, "phase": "live"}, [{"$set": {"renewed_at": "$$NOW", **literals}}]
        )
        return bool(found.matched_count)

    async def leave(self) -> None:
        """State an orderly stop."""
        await advance(self.db, Kind.NODE, self.node, NodeLeft(), actor=ACTOR, also={"bases": [], "adapters": []})

    async def list_bases(self) -> list[Doc]:
        """The catalogue, oldest name first."""
        return [base async for base in self.db["bases"].find({}).sort("_id", 1)]

    async def list_staged(self, bases: Collection[str]) -> list[Doc]:
        """Jobs whose model waits for an engine with one of these bases or aliases, oldest first."""
        names = ("spec.model", "staged", "base_digest", "generation", "attempt", "trace", "run_trace")
        fields = dict.fromkeys(names, 1)
        waiting = {"phase": "staged", "spec.model": {"$in": list(bases)}}
        return [job async for job in self.db["jobs"].find(waiting, fields).sort("_id", 1)]

    async def is_ready_elsewhere(self, bases: Collection[str]) -> bool:
        """Whether another live node says that it would answer with one of these bases."""
        others: Doc = {"_id": {"$ne": self.node}, "role": "inference", "phase": "live", "draining": {"$ne": True}}
        return await self.db["nodes"].find_one(others | {"bases": {"$in": list(bases)}}, {"_id": 1}) is not None

    async def list_deleted(self, model_ids: Collection[str]) -> set[str]:
        """Those of these models that were deleted, and those of these checkpoints whose job was."""
        query: Doc = {"_id": {"$in": list(model_ids)}, "phase": "deleted"}
        gone = {str(model["_id"]) async for model in self.db["models"].find(query, {"_id": 1})}
        saved = [found for model_id in model_ids if (found := _CHECKPOINT.fullmatch(model_id))]
        jobs = {checkpoint[0]: JOB_PREFIX + checkpoint["core"] for checkpoint in saved}
        query = {"_id": {"$in": list(jobs.values())}, DELETED: {"$ne": None}}
        gone_jobs = {job["_id"] async for job in self.db["jobs"].find(query, {"_id": 1})}
        return gone | {checkpoint for checkpoint, job in jobs.items() if job in gone_jobs}

    async def state_verdict(self, job: Doc, verdict: JobFact) -> Advanced:
        """State what became of the trial of a job's model."""
        op_id = f"{job['generation']}/{job['attempt']}/serving"
        match = {"attempt": job["attempt"], "generation": job["generation"]}
        return await advance(self.db, Kind.JOB, job["_id"], verdict, actor=ACTOR, op_id=op_id, match=match)


def names_of(base: Doc) -> tuple[str, ...]:
    """The name and the aliases of a catalogue entry."""
    return (base["_id"], *base.get("aliases", ()))
