"""What a job's document must be after any history: the rules of `journal.advance` told again, without a database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier_common.contract import events as f
from luthier_common.contract.lifecycle import HELD, JOB
from luthier_common.journal.advance import MAX_OPS

RANDOM = ("JobCancelled", "JobDeleted", "JobPaused", "PauseRequested", "JobResumed", "reason")
ANY = "random"
"""Stands for op ids of calls that are made once."""
Told = tuple[int, str, int, int, bool]
"""A fact as it stands in the outbox: seq, type, generation, attempt, terminal."""


@dataclass
class Model:
    """One job that was just created."""

    phase: str = "checking"
    generation: int = 1
    attempt: int = 0
    seq: int = 1
    last_step: int = 0
    checkpoint: int | None = None
    validated: int | None = None
    strikes: int = 0
    wanted: str = "run"
    reason: str | None = None
    datasets: frozenset[str] = frozenset()
    deleted: bool = False
    lease: Any = None
    ops: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=lambda: [(1, "JobCreated", 1, 0, False)])

    def copy(self) -> "Model":
        return Model(**{**vars(self), "ops": list(self.ops), "told": list(self.told)})

    @property
    def is_held(self) -> bool:
        return self.phase in HELD

    def state(
        self,
        facts: f.Fact | Sequence[f.Fact],
        *,
        attempt: int | None = None,
        op_id: str | None = None,
        match: "Callable[[Model], bool] | None" = None,
    ) -> str:
        """What `advance` must answer, with what it must do."""
        listed = [facts] if isinstance(facts, f.Fact) else list(facts)
        if op_id is not None and op_id != ANY and op_id in self.ops:
            return "duplicate"
        if attempt is not None and attempt != self.attempt:
            return "stale"
        first = {fact.type: fact for fact in reversed(listed)}
        if not all(self._is_new(fact) for fact in first.values()):
            return "duplicate"
        end = JOB.moves(listed).get(self.phase)
        if end is None or self.deleted:
            return "illegal"
        if match is not None and not match(self):
            return "changed"
        self._apply(listed, end)
        if op_id is not None:
            self.ops = [*self.ops, op_id][-MAX_OPS:]
        return "applied"

    def renew(self, attempt: int, fresh: object) -> str:
        """What the trainer hears when it renews its lease."""
        if attempt != self.attempt or not self.is_held:
            return "over"
        self.lease = fresh
        return self.wanted

    def differences(self, doc: dict[str, Any], told: Sequence[Told]) -> list[str]:
        """Where a document (and all that was told of it, outbox and event list together) is not as it must be."""
        saved = doc.get("checkpoint")
        wanted = {
            "phase": (doc["phase"], self.phase),
            "status": (doc["status"], JOB.status_of(self.phase)),
            "generation": (doc["generation"], self.generation),
            "attempt": (doc["attempt"], self.attempt),
            "seq": (doc["seq"], self.seq),
            "last_step": (doc["last_step"], self.last_step),
            "checkpoint": (saved and saved["step"], self.checkpoint),
            "validated": ((doc.get("last_validation") or {}).get("step"), self.validated),
            "reason": ((doc.get("queue") or {}).get("reason"), self.reason),
            "datasets": (set(doc.get("datasets") or ()), self.datasets),
            "strikes": (doc["strikes"], self.strikes),
            "wanted": (doc["wanted"], self.wanted),
            "deleted": (doc.get("deleted", False), self.deleted),
            "ops": ([ANY if op.split("/")[0] in RANDOM else op for op in doc["ops"]], self.ops),
            "lease": (doc.get("lease") is None, self.lease is None),
            "finished_at": (doc.get("finished_at") is not None, JOB.is_final(self.phase)),
            "told": (list(told), self.told),
        }
        return [f"{name}: {there!r}, not {mine!r}" for name, (there, mine) in wanted.items() if there != mine]

    def broken(self) -> list[str]:
        """What no history may lead to, whatever the rules above say."""
        found = []
        if [seq for seq, *_ in self.told] != list(range(1, self.seq + 1)):
            found.append("seq is not the number of facts")
        for generation in range(1, self.generation + 1):
            ends = [fact for fact in self.told if fact[2] == generation and fact[4]]
            must_have_ended = generation < self.generation or JOB.is_final(self.phase)
            if len(ends) != int(must_have_ended):
                found.append(f"generation {generation} has {len(ends)} terminal facts")
        attempts = [attempt for _, _, _, attempt, _ in self.told]
        if attempts != sorted(attempts):
            found.append("the attempt fell")
        return found

    def _is_new(self, fact: f.Fact) -> bool:
        match fact:
            case f.StepCompleted():
                return fact.step > self.last_step
            case f.CheckpointSaved():
                return self.checkpoint is None or fact.step > self.checkpoint
            case f.ValidationCompleted():
                return self.validated is None or fact.step > self.validated
            case f.DatasetProcessed():
                return fact.role not in self.datasets
            case f.QueueReasonChanged():
                return fact.reason != self.reason
            case f.JobPlaced():
                return fact.attempt == self.attempt + 1
        return True

    def _apply(self, facts: Sequence[f.Fact], end: str) -> None:
        for fact in facts:
            self._remember(fact)
        self.phase = end
        for number, fact in enumerate(facts, 1):
            is_last = JOB.is_final(end) and number == len(facts) and not JOB.closes(fact)
            self.told.append((self.seq + number, fact.type, self.generation, self.attempt, is_last))
        self.seq += len(facts)

    def _remember(self, fact: f.Fact) -> None:
        match fact:
            case f.StepCompleted():
                self.last_step = fact.step
            case f.CheckpointSaved():
                self.checkpoint, self.strikes = fact.step, 0
            case f.ValidationCompleted():
                self.validated = fact.step
            case f.DatasetProcessed():
                self.datasets |= {fact.role}
            case f.RunLost():
                self.strikes += 1
            case f.RunFailed():
                self.strikes += 0 if fact.preempted else 1
            case _:
                self._remember_what_is_wanted(fact)

    def _remember_what_is_wanted(self, fact: f.Fact) -> None:
        match fact:
            case f.QueueReasonChanged():
                self.reason = fact.reason
            case f.JobPlaced():
                self.attempt, self.wanted, self.lease, self.reason = fact.attempt, "run", None, None
            case f.JobRestarted():
                self.generation += 1
                self.strikes, self.wanted, self.datasets = 0, "run", frozenset()
            case f.PauseRequested():
                self.wanted = "pause"
            case f.JobResumed():
                self.wanted = "run"
            case f.JobCancelled():
                self.wanted = "cancel"
            case f.JobDeleted():
                self.deleted = True


def judge_cancel(model: Model, _again: bool) -> str:
    """What a user is told who cancels; `again`: the client repeats what it was not told."""
    if model.deleted or model.phase in ("succeeded", "failed"):
        return "refused"
    model.state(f.JobCancelled(), op_id=ANY)
    return "done"


def judge_delete(model: Model, again: bool) -> str:
    if model.state(f.JobDeleted(), op_id=ANY) == "applied" or (again and model.deleted):
        return "done"
    return "refused"


def judge_pause(model: Model, again: bool) -> str:
    if "applied" in [model.state(fact, op_id=ANY) for fact in (f.JobPaused(), f.PauseRequested())]:
        return "done"
    return "done" if model.phase == "pausing" or (again and model.phase == "paused") else "refused"


def judge_resume(model: Model, again: bool) -> str:
    if model.state(f.JobResumed(), op_id=ANY) == "applied":
        return "done"
    return "done" if again and model.phase in ("waiting", "placed", "training") else "refused"
