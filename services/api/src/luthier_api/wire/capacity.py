"""What the installation can do now, told to whoever may read jobs: numbers of all, details of one's own."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.jobs import Queued, queued_object
from luthier_common.contract.lifecycle import HELD
from luthier_common.kit.mongo import Doc

MAX_JOBS = 100


class Slots(TypedDict):
    total: int
    free: int


class CapacityNode(TypedDict):
    """A machine that trains. A draining one takes no more jobs, so none of its slots is free."""

    id: str
    device: str
    draining: bool
    slots: Slots


class Counts(TypedDict):
    """Jobs whose files are being read, that wait for slots, and that hold some."""

    validating_files: int
    queued: int
    running: int


class WaitingObject(TypedDict):
    id: str
    x_queue: Queued | None


class ProjectCapacity(TypedDict):
    """The project's own jobs; `waiting` holds the first hundred, in the order of their places."""

    counts: Counts
    waiting: list[WaitingObject]


class TunableModel(TypedDict):
    id: str
    aliases: list[str]
    context_length: int | None


class CapacityObject(TypedDict):
    """`counts` is of everybody's jobs."""

    object: Literal["fine_tuning.capacity"]
    slots: Slots
    nodes: list[CapacityNode]
    counts: Counts
    project: ProjectCapacity
    models: list[TunableModel]


def capacity_object(
    nodes: Iterable[Doc], counts: Counts, project: ProjectCapacity, bases: Iterable[Doc]
) -> CapacityObject:
    shown = [_node(node) for node in nodes]
    return {
        "object": "fine_tuning.capacity",
        "slots": {
            "total": sum(node["slots"]["total"] for node in shown),
            "free": sum(node["slots"]["free"] for node in shown),
        },
        "nodes": shown,
        "counts": counts,
        "project": project,
        "models": [_model(base) for base in bases],
    }


def project_object(phases: Mapping[str, int], waiting: Iterable[Doc], view: View) -> ProjectCapacity:
    shown: list[WaitingObject] = [{"id": view.id(job["_id"]), "x_queue": queued_object(job)} for job in waiting]
    return {"counts": counts_object(phases), "waiting": shown}


def _model(base: Doc) -> TunableModel:
    return {"id": base["_id"], "aliases": base.get("aliases") or [], "context_length": base.get("context_length")}


def _node(node: Doc) -> CapacityNode:
    slots, is_draining = node.get("slots") or [], bool(node.get("draining"))
    free = 0 if is_draining else sum(slot.get("holder") is None for slot in slots)
    return {
        "id": node["_id"],
        "device": str(node.get("device") or "unknown"),
        "draining": is_draining,
        "slots": {"total": len(slots), "free": free},
    }


def counts_object(phases: Mapping[str, int]) -> Counts:
    return {
        "validating_files": phases.get("checking", 0),
        "queued": phases.get("waiting", 0),
        "running": sum(phases.get(phase, 0) for phase in HELD),
    }
