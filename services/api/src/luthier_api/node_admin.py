"""`admin nodes`: lists trainers and engines, and forgets a machine that is gone for good."""

import secrets
import sys

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import NodeLeft
from luthier_common.contract.lifecycle import HELD
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.mongo import Database, Doc

ACTOR = Actor(room="api")
_JOB_FIELDS = ("org", "project", "attempt", "members")


class NodeError(LuthierError):
    """The node cannot be forgotten; the text says why."""


async def list_nodes(db: Database) -> None:
    """One line a node: its role, its phase, how many slots are held, and when it last said that it lives."""
    fields = dict.fromkeys(("role", "phase", "slots.holder", "renewed_at"), 1)
    async for node in db["nodes"].find({}, fields).sort("_id", 1):
        num_held = sum(slot["holder"] is not None for slot in node["slots"])
        seen = f"renewed {node['renewed_at']:%Y-%m-%d %H:%M:%S} UTC" if node["renewed_at"] else "never renewed"
        _tell(f"{node['_id']}  {node['role']}  {node['phase']}  {num_held} of {len(node['slots'])} slots held  {seen}")


async def forget_node(db: Database, name: str) -> None:
    """State that a lost node has left, and free its slots, which only the node itself does otherwise.

    The document stays: a machine that returns under this name joins, and counts its facts on from there.
    """
    node = await db["nodes"].find_one({"_id": name}, {"outbox": 0})
    if node is None:
        raise NodeError(f"there is no node {name}")
    if node["phase"] == "live":
        raise NodeError(f"{name} is live: stop its service, or wait until the scheduler calls it lost")
    if job := await _running_job(db, node):
        raise NodeError(f"the run of {job} there is not called lost yet: is a scheduler at work?")
    await _book(db, node)
    if not await _has_left(db, node):
        raise NodeError(f"{name} changed meanwhile; look again")
    _tell(f"{name} has left, and its slots are free")


async def _running_job(db: Database, node: Doc) -> str | None:
    held = [
        {"_id": slot["holder"]["job"], "attempt": slot["holder"]["attempt"]} for slot in node["slots"] if slot["holder"]
    ]
    running = await db["jobs"].find_one({"phase": {"$in": list(HELD)}, "$or": held}, {"_id": 1}) if held else None
    return str(running["_id"]) if running else None


async def _book(db: Database, node: Doc) -> None:
    """The usage of the runs whose slots it freed no more, until it last said that it lives; a first row stays."""
    claims: dict[str, tuple[Doc, list[int]]] = {}
    for slot in node["slots"]:
        if (holder := slot["holder"]) is not None:
            key = f"{holder['job']}/a{holder['attempt']}/{node['_id']}/{holder['claim']}"
            claims.setdefault(key, (holder, []))[1].append(slot["index"])
    for key, (holder, slots) in claims.items():
        job = await db["jobs"].find_one({"_id": holder["job"]}, dict.fromkeys(_JOB_FIELDS, 1))
        if job is None or not _was_placed(job, holder["attempt"], node["_id"], slots):
            continue
        row = {"job": holder["job"], "attempt": holder["attempt"], "node": node["_id"], "slots": slots}
        row |= {"from": holder.get("claimed_at"), "to": node["renewed_at"]}
        row |= {"org": job["org"], "project": job["project"]}
        await db["usage"].update_one({"_id": key}, {"$setOnInsert": row}, upsert=True)


def _was_placed(job: Doc, attempt: int, node: str, slots: list[int]) -> bool:
    """Whether the attempt ran on these slots; a document of a later one no longer says where, so it counts as if."""
    if job["attempt"] != attempt:
        return bool(job["attempt"] > attempt)
    return any(
        member["node"] == node and sorted(member["slots"]) == sorted(slots) for member in job.get("members") or ()
    )


async def _has_left(db: Database, node: Doc) -> bool:
    """A node that stopped in order and died meanwhile has left already, and may still hold slots."""
    seen = {"phase": node["phase"], "slots": node["slots"]}
    freed = {"slots": [slot | {"holder": None} for slot in node["slots"]]}
    if node["phase"] == "left":
        return bool((await db["nodes"].update_one({"_id": node["_id"], **seen}, {"$set": freed})).matched_count)
    op_id = f"forget/{secrets.token_hex(4)}"
    done = await advance(
        db, Kind.NODE, node["_id"], NodeLeft(), actor=ACTOR, op_id=op_id, match=seen, also=freed | {"struck": None}
    )
    return done.done


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
