"""Which waiting job gets which slots now, and why each other one waits: a pure function of a snapshot."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

Claim = tuple[str, int]
"""A job's id and the attempt that slots are claimed for."""
MAX_DOUBLINGS = 6
"""A rest grows no further than to 64 times its base."""
AVOIDED_RESTS = 10
"""So many rests long a job waits for another node than those where it failed; then any will do."""


class Reason(StrEnum):
    """Why a job waits; open strings on the wire."""

    NO_NODES = "no_nodes"
    NO_FREE_SLOTS = "no_free_slots"
    TOO_LARGE = "too_large"
    RESTING = "resting"
    NODES_REST = "nodes_rest"


@dataclass(frozen=True)
class WaitingJob:
    id: str
    created_at: datetime
    num_slots: int = 1
    priority: int = 0
    attempt: int = 0
    strikes: int = 0
    struck_ago_s: float = math.inf
    struck_on: frozenset[str] = frozenset()
    """Nodes of the attempts that its strikes stand for."""
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
    struck_by: tuple[str, ...] = ()
    """The jobs of the last runs here, while every one of these runs failed without a checkpoint."""
    struck_ago_s: float = math.inf


@dataclass(frozen=True)
class Placement:
    job_id: str
    attempt: int
    node_id: str
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """`position` counts from 1, None where it was not counted; `is_news` when the job was last told another reason."""

    job_id: str
    reason: Reason
    message: str
    position: int | None
    is_news: bool
    is_moved: bool


@dataclass(frozen=True)
class Decision:
    exhausted: tuple[str, ...]
    placements: tuple[Placement, ...]
    waits: tuple[Wait, ...]
    resting_nodes: frozenset[str] = frozenset()
    has_room: bool = False
    """A slot is left that none of these jobs could use, and another one might."""


def decide(
    jobs: Sequence[WaitingJob],
    nodes: Sequence[TrainerNode],
    *,
    max_strikes: int,
    retry_rest_s: float,
    behind: Sequence[WaitingJob] = (),
) -> Decision:
    """Place what fits, in order of priority and age; nobody overtakes the first job that waits on the node it keeps.

    What has just failed rests: a job after each strike, a node when its last runs failed, of several jobs. `behind` are
    jobs further back than the free slots reach: they are only told why they wait.
    """
    exhausted = tuple(job.id for job in (*jobs, *behind) if job.strikes >= max_strikes)
    queue = sorted((job for job in jobs if job.strikes < max_strikes), key=_place_in_queue)
    awake = [node for node in nodes if not _is_resting(node, retry_rest_s)]
    open_nodes = {node.id: node for node in awake}
    largest, largest_awake = _largest(nodes), _largest(awake)
    placements: list[Placement] = []
    waits: list[Wait] = []
    kept: TrainerNode | None = None
    for job in queue:
        rest_s = _rest_s(job.strikes, retry_rest_s)
        avoided = _nodes_to_avoid(job, awake, rest_s)
        usable = [] if job.struck_ago_s < rest_s else [node for node in open_nodes.values() if node.id not in avoided]
        node = _best_node(job, usable)
        if node is not None:
            slots = _slots_for(job, node)
            placements.append(Placement(job.id, job.attempt + 1, node.id, slots))
            open_nodes[node.id] = _without(node, slots)
            continue
        reason, message = _why(job, largest, largest_awake, rest_s)
        position = len(waits) + 1
        waits.append(Wait(job.id, reason, message, position, reason != job.reason, position != job.position))
        if kept is None and (kept := _node_to_keep(job, usable)) is not None:
            del open_nodes[kept.id]
    for job in (job for job in behind if job.strikes < max_strikes):
        reason, message = _why(job, largest, largest_awake, _rest_s(job.strikes, retry_rest_s))
        waits.append(Wait(job.id, reason, message, None, reason != job.reason, is_moved=False))
    resting = frozenset(node.id for node in nodes) - {node.id for node in awake}
    has_room = any(node.free for node in open_nodes.values())
    return Decision(exhausted, tuple(placements), tuple(waits), resting, has_room)


def _place_in_queue(job: WaitingJob) -> tuple[int, datetime, str]:
    return -job.priority, job.created_at, job.id


def usual_reason(nodes: Sequence[TrainerNode], retry_rest_s: float) -> Reason:
    """Why a job of one slot that never failed waits, where no slot is free."""
    awake = [node for node in nodes if not _is_resting(node, retry_rest_s)]
    if awake:
        return Reason.NO_FREE_SLOTS
    return Reason.NODES_REST if _largest(nodes) else Reason.NO_NODES


def _rest_s(strikes: int, base_s: float) -> float:
    return base_s * 2.0 ** min(strikes, MAX_DOUBLINGS) if strikes else 0.0


def _is_resting(node: TrainerNode, base_s: float) -> bool:
    # Of one job alone nobody knows whether it is the node's fault.
    return len(set(node.struck_by)) > 1 and node.struck_ago_s < _rest_s(len(node.struck_by) - 1, base_s)


def _nodes_to_avoid(job: WaitingJob, awake: Sequence[TrainerNode], rest_s: float) -> frozenset[str]:
    """Where the job failed, while there is another node that is large enough, whoever uses it now."""
    if job.struck_ago_s >= AVOIDED_RESTS * rest_s:
        return frozenset()
    has_other = any(node.num_slots >= job.num_slots and node.id not in job.struck_on for node in awake)
    return job.struck_on if has_other else frozenset()


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


def _largest(nodes: Sequence[TrainerNode]) -> int:
    return max((node.num_slots for node in nodes), default=0)


def _why(job: WaitingJob, largest: int, largest_awake: int, rest_s: float) -> tuple[Reason, str]:
    if not largest:
        return Reason.NO_NODES, "No trainer node is connected."
    if job.num_slots > largest:
        return Reason.TOO_LARGE, f"The job asks for {job.num_slots} slots; the largest node has {largest}."
    if job.struck_ago_s < rest_s:
        message = f"Attempt {job.attempt} failed; the job rests for {rest_s:g} s before attempt {job.attempt + 1}."
        return Reason.RESTING, message
    if job.num_slots > largest_awake:
        return Reason.NODES_REST, "Every node it fits rests: the last runs there failed, of several jobs."
    return Reason.NO_FREE_SLOTS, "All slots it could use are taken, or kept for a job ahead of it."
