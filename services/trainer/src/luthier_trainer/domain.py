"""What a claim on this node's slots calls for, and which fact a child's report becomes; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from luthier_common.contract import events as f
from luthier_common.contract.lifecycle import HELD
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.spec import JobSpec, ResolvedHyperparameters
from luthier_trainer.protocol import Evaluated, Failed, SftHyperparameters, Started, Step

Doc = dict[str, Any]
RunKey = tuple[str, int]


class AttemptOverError(Exception):
    """The job no longer takes facts of this attempt."""


class NameTakenError(RuntimeError):
    """Another trainer works under this node's name."""

    def __init__(self, node: str) -> None:
        super().__init__(f"another trainer works as {node}: LUTHIER_TRAINER_NODE must be a name of its own for each")


@dataclass(frozen=True)
class NameHolder:
    """Who has a node's name, as its document says."""

    instance: str | None
    renewed_at: datetime | None


class NameWatch:
    """Tells whether the holder of a name is silent.

    Only time that was really watched counts: after a pause longer than half a TTL, such as an outage of the database
    in which nobody can renew, the holder gets a whole TTL again.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: NameHolder | None = None
        self._since_s = self._looked_at_s = -math.inf

    def has_changed(self, holder: NameHolder) -> bool:
        """Whether somebody has renewed since the last look."""
        return self._seen not in (None, holder)

    def is_silent(self, holder: NameHolder, now_s: float) -> bool:
        """Look now: whether this very holder was seen for a whole TTL."""
        if self._seen != holder or now_s - self._looked_at_s > self._ttl_s / 2:
            self._seen, self._since_s = holder, now_s
        self._looked_at_s = now_s
        return now_s - self._since_s >= self._ttl_s


@dataclass(frozen=True)
class Claim:
    """Slots of this node that one attempt of a job holds."""

    job_id: str
    attempt: int
    slots: tuple[int, ...]
    claimed_at: datetime | None
    token: str | None = None
    """Tells this claim from another one for the same attempt."""
    is_gone: bool = False
    """A device of it is not this node's any more."""

    @property
    def key(self) -> RunKey:
        return self.job_id, self.attempt


@dataclass(frozen=True)
class Assignment:
    """All that a run needs from its job's document."""

    claim: Claim
    org: str
    project: str
    spec: JobSpec
    resolved: ResolvedHyperparameters
    base_digest: str
    checkpoint: f.CheckpointSaved | None
    last_step: int
    total_steps: int
    training_sha256: str | None
    validation_sha256: str | None
    trace: str | None

    @property
    def prefix(self) -> str:
        """Below it lie the objects of this attempt, and only of it."""
        return f"{self.job_prefix}a{self.claim.attempt}/"

    @property
    def job_prefix(self) -> str:
        return f"{self.org}/{self.project}/jobs/{self.claim.job_id}/"


class Verdict(StrEnum):
    """What is to be done about a claim that no run of this process stands for."""

    START = "start"
    LOST = "lost"
    """It ran here once, under a process that is gone, or its device is gone: nothing is adopted."""
    PAUSE = "pause"
    """Nothing runs yet and a pause is wanted: state it and free the slots."""
    FREE = "free"
    """The attempt is over."""
    WITHDRAW = "withdraw"
    """Nobody was placed on it for a while, and nobody will be."""
    WAIT = "wait"


def claims_of(slots: Sequence[Doc]) -> list[Claim]:
    """The claims in a node's document. Two schedulers may both have claimed for an attempt: each claim is its own."""
    found: dict[tuple[str, int, str | None], list[Doc]] = {}
    for slot in slots:
        if (holder := slot.get("holder")) is not None:
            found.setdefault((holder["job"], holder["attempt"], holder.get("claim")), []).append(slot)
    return [
        Claim(
            job,
            attempt,
            tuple(sorted(slot["index"] for slot in held)),
            held[0]["holder"].get("claimed_at"),
            token,
            any(slot.get("gone", False) for slot in held),
        )
        for (job, attempt, token), held in found.items()
    ]


def judge(claim: Claim, job: Doc | None, node: str, now: datetime, ttl_s: float, *, home: str) -> Verdict:
    """What a claim calls for: a run that the rows do not name is never started, one that may come to be not freed."""
    if job is not None and job["attempt"] == claim.attempt and _names(job, claim, node):
        if job["phase"] not in HELD:
            return Verdict.FREE
        if _is_held_elsewhere(job.get("lease") or {}, home, now, ttl_s):
            return Verdict.WAIT
        # JobPlaced clears the lease and a run's first deed is to renew it.
        if job.get("lease") is not None or claim.is_gone:
            return Verdict.LOST
        return Verdict.PAUSE if job.get("wanted") == "pause" else Verdict.START
    if job is not None and job["attempt"] > claim.attempt:
        return Verdict.FREE
    is_old = claim.claimed_at is not None and (now - claim.claimed_at).total_seconds() > ttl_s
    return Verdict.WITHDRAW if is_old else Verdict.WAIT


def is_ours(claim: Claim, job: Doc | None, node: str) -> bool:
    """Whether the attempt is placed here and has not ended."""
    if job is None or job["phase"] not in HELD:
        return False
    return bool(job["attempt"] == claim.attempt and _names(job, claim, node))


def tells_of_node(ending: f.RunFact | None, has_saved: bool) -> bool | None:
    """What a run's end says of its node: True that it works, False that it may not, None nothing."""
    if has_saved or isinstance(ending, f.RunFinished):
        return True
    is_strike = isinstance(ending, f.RunFailed) and not ending.preempted and ending.problem.owner != "user"
    return False if is_strike else None


def assignment_of(claim: Claim, job: Doc) -> Assignment:
    """Read a placed job's document."""
    datasets = job.get("datasets") or {}
    resolved = ResolvedHyperparameters.model_validate(job["resolved"])
    checkpoint = job.get("checkpoint")
    return Assignment(
        claim=claim,
        org=job["org"],
        project=job["project"],
        spec=JobSpec.model_validate(job["spec"]),
        resolved=resolved,
        base_digest=job["base_digest"],
        checkpoint=None if checkpoint is None else f.CheckpointSaved.model_validate(checkpoint),
        last_step=job.get("last_step") or 0,
        total_steps=resolved.total_steps,
        training_sha256=(datasets.get("training") or {}).get("sha256"),
        validation_sha256=(datasets.get("validation") or {}).get("sha256"),
        trace=job.get("trace"),
    )


def child_hyperparameters(resolved: ResolvedHyperparameters) -> SftHyperparameters:
    """The pinned numbers in the child's words."""
    return SftHyperparameters.model_validate(resolved.model_dump())


def run_started(report: Started) -> f.RunStarted:
    return f.RunStarted(
        total_steps=report.total_steps,
        num_epochs=report.num_epochs,
        num_examples=report.num_examples,
        device=str(report.resolved.get("device", "cpu")),
        resumed_from_step=report.start_step or None,
    )


def step_completed(report: Step, total_steps: int) -> f.StepCompleted:
    return f.StepCompleted(
        step=report.step,
        total_steps=total_steps,
        epoch=report.epoch,
        train_loss=report.loss,
        train_mean_token_accuracy=report.mean_token_accuracy,
        learning_rate=report.learning_rate,
        grad_norm=report.grad_norm,
        trained_tokens=report.trained_tokens,
        tokens_per_s=report.tokens_per_s,
        step_time_s=report.step_time_s,
    )


def validation_completed(report: Evaluated, total_steps: int) -> f.ValidationCompleted:
    return f.ValidationCompleted(
        step=report.step,
        total_steps=total_steps,
        train_loss=report.train_loss,
        full_valid_loss=report.valid_loss,
        full_valid_mean_token_accuracy=report.valid_mean_token_accuracy,
    )


def series_row(report: Step | Evaluated) -> dict[str, Any]:
    """A line of the whole series: what the child told, and the metrics by the names that users know them by."""
    metrics: dict[str, float] = {}
    match report:
        case Step():
            metrics = {"train_loss": report.loss, "train_mean_token_accuracy": report.mean_token_accuracy}
        case Evaluated() if report.full:
            metrics = {
                "full_valid_loss": report.valid_loss,
                "full_valid_mean_token_accuracy": report.valid_mean_token_accuracy,
            }
    return {**report.model_dump(mode="json"), **metrics}


def run_failed(reason: FailureReason, message: str | None = None, *, retryable: bool | None = None) -> f.RunFailed:
    """What an operator can cure is tried again; what is the user's own move is not."""
    again = reason.owner != "user" if retryable is None else retryable
    owner = "user" if reason.owner == "user" else "operator"
    problem = f.Problem(code=reason, message=message or reason.sentence, owner=owner, retryable=again)
    return f.RunFailed(problem=problem, retryable=again)


def failure_of(report: Failed) -> f.RunFailed:
    """A child's own words; a reason that this version does not know is an internal error."""
    known = {str(reason): reason for reason in FailureReason}
    reason = known.get(report.reason, FailureReason.INTERNAL)
    return run_failed(reason, report.message, retryable=report.retryable)


def thin(steps: list[Step]) -> list[Step]:
    """Half of the steps, the last one kept: the outbox is full while the broker is away. The metrics file has all."""
    return steps[-1::-2][::-1]


def _names(job: Doc, claim: Claim, node: str) -> bool:
    """Whether the job is placed on exactly these slots of this node; both name slots in their order."""
    return any(member["node"] == node and tuple(member["slots"]) == claim.slots for member in job.get("members") or ())


def _is_held_elsewhere(lease: Doc, home: str, now: datetime, ttl_s: float) -> bool:
    """Whether the trainer of another home that had this node's name still saves the run; one of this home is gone."""
    if lease.get("home") in (None, home):
        return False
    return bool((now - lease["renewed_at"]).total_seconds() < ttl_s)
