"""Which waiting job gets which slots now, and why each other one waits: a pure function of a snapshot."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

Claim = tuple[str, int]
"""A job's id and the attempt that slots are claimed for."""


class Reason(StrEnum):
    """Why a job waits; open strings on the wire."""

    NO_NODES = "no_nodes"
    NO_FREE_SLOTS = "no_free_slots"
    TOO_LARGE = "too_large"


@dataclass(frozen=True)
class WaitingJob:
    id: str
    created_at: datetime
    num_slots: int = 1
    priority: int = 0
    attempt: int = 0
    strikes: int = 0
    reason: str | None = None
    """What it was last told."""
    position: int | None = None


@dataclass(frozen=True)
class TrainerNode:
    """A live node that takes jobs."""

    id: str
    num_slots: int
    free: tuple[int, ...]
    claimed: Mapping[Claim, tuple[int, ...]] = field(default_factory=dict)
    """Slots that are held, by what they are held for."""


@dataclass(frozen=True)
class Placement:
    job_id: str
    attempt: int
    node_id: str
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """`position` counts from 1; `is_news` when the reason is another than the job was last told."""

    job_id: str
    reason: Reason
    message: str
    position: int
    is_news: bool
    is_moved: bool


@dataclass(frozen=True)
class Decision:
    exhausted: tuple[str, ...]
    placements: tuple[Placement, ...]
    waits: tuple[Wait, ...]


def decide(jobs: Sequence[WaitingJob], nodes: Sequence[TrainerNode], *, max_strikes: int) -> Decision:
    """Place what fits, in order of priority and age; nobody overtakes a job on the node that is kept for it."""
    exhausted = tuple(job.id for job in jobs if job.strikes >= max_strikes)
    queue = sorted(
        (job for job in jobs if job.strikes < max_strikes), key=lambda job: (-job.priority, job.created_at, job.id)
    )
    open_nodes = {node.id: node for node in nodes}
    largest = max((node.num_slots for node in nodes), default=0)
    placements: list[Placement] = []
    waits: list[Wait] = []
    for job in queue:
        node = _best_node(job, open_nodes.values())
        if node is not None:
            slots = _slots_for(job, node)
            placements.append(Placement(job.id, job.attempt + 1, node.id, slots))
            open_nodes[node.id] = _without(node, slots)
            continue
        waits.append(_wait(job, len(waits) + 1, largest))
        kept = _node_to_keep(job, open_nodes.values())
        if kept is not None:
            del open_nodes[kept.id]
    return Decision(exhausted, tuple(placements), tuple(waits))


def _usable(job: WaitingJob, node: TrainerNode) -> tuple[int, ...]:
    """Free slots, after those that an interrupted placement of this very attempt has claimed already."""
    return (*node.claimed.get((job.id, job.attempt + 1), ()), *node.free)


def _slots_for(job: WaitingJob, node: TrainerNode) -> tuple[int, ...]:
    return tuple(sorted(_usable(job, node)[: job.num_slots]))


def _best_node(job: WaitingJob, nodes: Iterable[TrainerNode]) -> TrainerNode | None:
    """The node that holds a claim of this attempt, or the fullest one that fits, so that large gaps stay."""
    fitting = [node for node in nodes if len(_usable(job, node)) >= job.num_slots]
    claim = (job.id, job.attempt + 1)
    return min(fitting, key=lambda node: (-len(node.claimed.get(claim, ())), len(node.free), node.id), default=None)


def _node_to_keep(job: WaitingJob, nodes: Iterable[TrainerNode]) -> TrainerNode | None:
    """The node that a job waits for: the one with the most free slots of those that are large enough."""
    large = [node for node in nodes if node.num_slots >= job.num_slots]
    return min(large, key=lambda node: (-len(node.free), node.id), default=None)


def _without(node: TrainerNode, slots: tuple[int, ...]) -> TrainerNode:
    return replace(node, free=tuple(slot for slot in node.free if slot not in slots))


def _wait(job: WaitingJob, position: int, largest: int) -> Wait:
    if not largest:
        reason, message = Reason.NO_NODES, "No trainer node is connected."
    elif job.num_slots > largest:
        reason = Reason.TOO_LARGE
        message = f"The job asks for {job.num_slots} slots; the largest node has {largest}."
    else:
        reason, message = Reason.NO_FREE_SLOTS, "All slots it could use are taken, or kept for a job ahead of it."
    return Wait(job.id, reason, message, position, reason != job.reason, position != job.position)
