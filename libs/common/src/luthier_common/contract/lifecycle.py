"""The four lives, whole: which fact moves what, from where, to where, and which room may state it.

A phase is exact and inner; a status is what users see, and each phase has one. `journal.advance` is the only code that
writes either, and it asks this table. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier_common.contract import events as f
from luthier_common.contract.topics import Kind

NEW = "new"
"""The phase before the first fact."""


@dataclass(frozen=True)
class Phase:
    """One inner state. `final` phases end a generation."""

    name: str
    status: str
    sentence: str
    final: bool = False


@dataclass(frozen=True)
class Row:
    """`fact`, stated by `room` while the thing is in one of `sources`, moves it to `target` (None: it stays)."""

    sources: tuple[str, ...]
    fact: type[f.Fact]
    target: str | None
    room: str
    when: Mapping[str, Any] = field(default_factory=dict)
    """Values of the fact's own fields that select this row."""
    reopens: bool = False
    """A user's restart of a final thing; raises the generation."""
    closes: bool = False
    """A user's deletion of a final thing that keeps its phase: no fact follows, not even a restart."""


@dataclass(frozen=True)
class Lifecycle:
    kind: Kind
    phases: tuple[Phase, ...]
    rows: tuple[Row, ...]

    def status_of(self, phase: str) -> str:
        return next(p.status for p in self.phases if p.name == phase)

    def is_final(self, phase: str) -> bool:
        return any(p.final for p in self.phases if p.name == phase)

    def moves(self, facts: Sequence[f.Fact]) -> dict[str, str]:
        """For each phase in which all of `facts` may be stated one after the other: the phase they lead to."""
        if any(self.closes(fact) for fact in facts[:-1]):
            return {}
        ends = {phase: phase for phase in (NEW, *(p.name for p in self.phases))}
        for fact in facts:
            step = self._step(fact)
            ends = {start: step[now] for start, now in ends.items() if now in step}
        return ends

    def closes(self, fact: f.Fact) -> bool:
        """Whether nothing may follow this fact."""
        return any(row.closes and isinstance(fact, row.fact) for row in self.rows)

    def _step(self, fact: f.Fact) -> dict[str, str]:
        step: dict[str, str] = {}
        for row in self.rows:
            if isinstance(fact, row.fact) and all(getattr(fact, name) == value for name, value in row.when.items()):
                for source in row.sources:
                    step.setdefault(source, row.target or source)
        return step


HELD = ("placed", "training", "pausing")
"""Phases in which an attempt holds slots."""

JOB = Lifecycle(
    Kind.JOB,
    phases=(
        Phase("checking", "validating_files", "its files are being read"),
        Phase("waiting", "queued", "it waits for slots"),
        Phase("placed", "queued", "slots are held; the node is preparing the run"),
        Phase("training", "running", "steps are being made"),
        Phase("pausing", "running", "the run saves a checkpoint and stops"),
        Phase("trained", "running", "training is over; the artifact is being registered"),
        Phase("staged", "running", "an engine is trying the model"),
        Phase("verified", "running", "the model answered; it is being published"),
        Phase("paused", "paused", "it holds no slots until it is resumed"),
        Phase("succeeded", "succeeded", "its model answers", final=True),
        Phase("failed", "failed", "it ended without a model; `error` says why", final=True),
        Phase("cancelled", "cancelled", "a user ended it", final=True),
    ),
    rows=(
        Row((NEW,), f.JobCreated, "checking", "api"),
        Row(("checking",), f.DatasetProcessed, None, "file-validator"),
        Row(("checking",), f.DataAccepted, "waiting", "file-validator"),
        Row(("checking",), f.DataRejected, "failed", "file-validator"),
        Row(("waiting",), f.QueueReasonChanged, None, "scheduler"),
        Row(("waiting",), f.JobPlaced, "placed", "scheduler"),
        Row(("waiting",), f.JobFailed, "failed", "scheduler"),
        Row(("placed", "pausing"), f.CheckpointRejected, None, "trainer"),
        Row(("placed",), f.RunStarted, "training", "trainer"),
        Row(("pausing",), f.RunStarted, None, "trainer"),
        Row(("training", "pausing"), f.StepCompleted, None, "trainer"),
        Row(("training", "pausing"), f.ValidationCompleted, None, "trainer"),
        Row(("training", "pausing"), f.CheckpointSaved, None, "trainer"),
        Row(("placed", "training"), f.PauseRequested, "pausing", "api"),
        Row(("waiting",), f.JobPaused, "paused", "api"),
        Row(("pausing",), f.RunPaused, "paused", "trainer"),
        Row(("paused",), f.JobResumed, "waiting", "api"),
        Row(("placed", "training"), f.RunLost, "waiting", "scheduler"),
        Row(("pausing",), f.RunLost, "paused", "scheduler"),
        Row(("placed", "training"), f.RunFailed, "waiting", "trainer", when={"retryable": True}),
        Row(("pausing",), f.RunFailed, "paused", "trainer", when={"retryable": True}),
        Row(HELD, f.RunFailed, "failed", "trainer", when={"retryable": False}),
        Row(("training", "pausing"), f.RunFinished, "trained", "trainer"),
        Row(("trained",), f.ArtifactStaged, "staged", "registry"),
        Row(("trained", "verified"), f.JobFailed, "failed", "registry"),
        Row(("staged",), f.ServingVerified, "verified", "inference"),
        Row(("staged",), f.ServingRefused, "failed", "inference"),
        Row(("staged",), f.ServingSkipped, "verified", "registry, inference"),
        Row(("verified",), f.ModelRegistered, "succeeded", "registry"),
        Row(
            ("checking", "waiting", *HELD, "trained", "staged", "verified", "paused"),
            f.JobCancelled,
            "cancelled",
            "api",
        ),
        Row(("failed", "cancelled"), f.JobRestarted, "checking", "api", reopens=True),
        Row(("succeeded", "failed", "cancelled"), f.JobDeleted, None, "api", closes=True),
    ),
)

FILE = Lifecycle(
    Kind.FILE,
    phases=(
        Phase("uploaded", "uploaded", "its bytes are stored; nobody has read them yet"),
        Phase("processed", "processed", "it can be used"),
        Phase("rejected", "error", "it cannot be trained on; the report says where"),
        Phase("deleted", "deleted", "its bytes are gone, or go when the last job that uses them ends", final=True),
    ),
    rows=(
        Row((NEW,), f.FileUploaded, "uploaded", "api"),
        Row((NEW,), f.FileGenerated, "processed", "registry"),
        Row(("uploaded",), f.FileValidated, "processed", "file-validator", when={"valid": True}),
        Row(("uploaded",), f.FileValidated, "rejected", "file-validator", when={"valid": False}),
        Row(("uploaded", "processed", "rejected"), f.FileDeleted, "deleted", "api, registry"),
    ),
)

MODEL = Lifecycle(
    Kind.MODEL,
    phases=(
        Phase("staged", "staged", "its files are in place; nobody sees it before its job has succeeded"),
        Phase("published", "published", "it answers"),
        Phase("deleted", "deleted", "it no longer answers", final=True),
    ),
    rows=(
        Row((NEW,), f.ModelStaged, "staged", "registry"),
        Row(("staged",), f.ModelPublished, "published", "registry"),
        Row(("staged",), f.ModelDeleted, "deleted", "registry"),
        Row(("published",), f.ModelDeleted, "deleted", "api"),
    ),
)

NODE = Lifecycle(
    Kind.NODE,
    phases=(
        Phase("live", "live", "it renews its document"),
        Phase("lost", "lost", "its renewals stopped"),
        Phase("left", "left", "it was stopped in order, or an operator says that it is gone"),
    ),
    rows=(
        Row((NEW, "live", "lost", "left"), f.NodeJoined, "live", "trainer, inference"),
        Row(("live",), f.NodeCapacityChanged, None, "trainer, inference"),
        Row(("live",), f.NodeLost, "lost", "scheduler"),
        Row(("live",), f.NodeLeft, "left", "trainer, inference"),
        Row(("lost",), f.NodeLeft, "left", "trainer, inference, api"),
    ),
)

LIFECYCLES: dict[Kind, Lifecycle] = {life.kind: life for life in (JOB, FILE, MODEL, NODE)}
