"""Every fact, past tense, in the order of a life. Who may state one, and when, stands in `lifecycle.py`.

A fact says three things besides its own fields: what the thing's document remembers of it (`remembers`), what it
counts there (`counts`), and the condition under which it is new (`unless_done`, a MongoDB filter on natural keys).
Changes are additive; a break is a new fact.
"""

from typing import Any, ClassVar

from pydantic import Field

from luthier_common.contract.spec import JobSpec, ResolvedHyperparameters, Shape
from luthier_common.contract.topics import Kind

DELETED = "deleted"
"""The field of a document whose thing was deleted though its phase stays: no fact follows."""


class Fact(Shape):
    """Something that happened to one thing. Never holds prompts, texts, tokens or secrets."""

    kind: ClassVar[Kind]
    of_a_run: ClassVar[bool] = False
    bulk: ClassVar[bool] = False
    """Step facts: thinned while the broker is away. All others are kept."""

    @property
    def type(self) -> str:
        return type(self).__name__

    def remembers(self) -> dict[str, Any]:
        return {}

    def counts(self) -> dict[str, int]:
        return {}

    def unless_done(self) -> dict[str, Any]:
        return {}


class JobFact(Fact):
    kind: ClassVar[Kind] = Kind.JOB


class RunFact(JobFact):
    """A fact of one attempt; accepted only while that attempt is the job's."""

    of_a_run: ClassVar[bool] = True


class FileFact(Fact):
    kind: ClassVar[Kind] = Kind.FILE


class ModelFact(Fact):
    kind: ClassVar[Kind] = Kind.MODEL


class NodeFact(Fact):
    kind: ClassVar[Kind] = Kind.NODE


class Problem(Shape):
    """Why something ended, for people and programs. `code` is a `reasons.FailureReason`, open on the wire."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    owner: str = Field("operator", description="whose move it is: user or operator")
    retryable: bool = False


class Member(Shape):
    """One node's share of a placed run."""

    node: str
    slots: tuple[int, ...]
    rank: int = 0


class Blob(Shape):
    """A verified set of files in the object store: `key` is a prefix, the manifest names each file with its sha256."""

    key: str
    manifest_sha256: str
    bytes: int


# Files


class FileUploaded(FileFact):
    """The file's bytes are stored whole under `object_key`; nobody has read them yet."""

    filename: str
    bytes: int
    sha256: str
    purpose: str
    object_key: str


class FileValidated(FileFact):
    """The verdict on a file. The full report lies at `report_key`."""

    valid: bool
    num_examples: int | None = None
    num_tokens: int | None = Field(None, description="counted with the default base's tokenizer")
    num_findings: int = 0
    report_key: str | None = None
    report_sha256: str | None = None
    problem: Problem | None = None

    def remembers(self) -> dict[str, Any]:
        return {"verdict": self.model_dump(mode="json")}


class FileGenerated(FileFact):
    """A file that a job produced, such as its metrics; nobody validates it."""

    filename: str
    bytes: int
    sha256: str
    purpose: str
    object_key: str
    job_id: str


class FileDeleted(FileFact):
    """A user deleted the file; its bytes go when nothing refers to them."""


# Jobs: from creation to the queue


class JobCreated(JobFact):
    """A job was asked for. `spec` is what its creator asked for, before anything is resolved."""

    spec: JobSpec


class DatasetProcessed(JobFact):
    """One file of the job has been read and counted with the base's own tokenizer."""

    file_id: str
    role: str = Field(description="training or validation")
    num_examples: int
    num_tokens: int
    num_trained_tokens: int = Field(description="tokens that carry a label, in one pass")
    sha256: str

    def remembers(self) -> dict[str, Any]:
        return {f"datasets.{self.role}": self.model_dump(mode="json")}

    def unless_done(self) -> dict[str, Any]:
        return {f"datasets.{self.role}": None}


class DataAccepted(JobFact):
    """Every file of the job has been read and can be trained on."""

    num_examples: int
    num_tokens: int


class DataRejected(JobFact):
    """A file of the job cannot be trained on; the report names each finding."""

    problem: Problem
    report_key: str | None = None

    def remembers(self) -> dict[str, Any]:
        return {"error": self.problem.model_dump(mode="json")}


class QueueReasonChanged(JobFact):
    """Why the job waits. Its position is a view and never a fact."""

    reason: str
    message: str

    def remembers(self) -> dict[str, Any]:
        return {"queue.reason": self.reason, "queue.message": self.message}

    def unless_done(self) -> dict[str, Any]:
        return {"queue.reason": {"$ne": self.reason}}


# Jobs: a run


class JobPlaced(JobFact):
    """Slots are held for attempt number `attempt`."""

    attempt: int
    members: tuple[Member, ...]
    resumes_from_step: int | None = None
    resolved: ResolvedHyperparameters = Field(description="pinned at the first placement, unchanged afterwards")
    base_digest: str = Field(description="sha256 of the base bundle's manifest, pinned likewise")

    def remembers(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "members": [member.model_dump(mode="json") for member in self.members],
            "resolved": self.resolved.model_dump(mode="json"),
            "base_digest": self.base_digest,
            "wanted": "run",
            "lease": None,
            "queue": None,
        }

    def unless_done(self) -> dict[str, Any]:
        return {"attempt": self.attempt - 1}


class RunStarted(RunFact):
    """The node has loaded base and data; steps follow."""

    total_steps: int
    num_epochs: int
    num_examples: int
    device: str
    resumed_from_step: int | None = None

    def remembers(self) -> dict[str, Any]:
        return {"total_steps": self.total_steps, "device": self.device}


class StepCompleted(RunFact):
    """Means over trained tokens only (labels that count), not over padding or prompts."""

    bulk: ClassVar[bool] = True
    step: int
    total_steps: int
    epoch: float
    train_loss: float
    train_mean_token_accuracy: float
    learning_rate: float
    grad_norm: float | None = None
    trained_tokens: int = Field(description="labelled tokens so far, over all epochs")
    tokens_per_s: float | None = None
    step_time_s: float | None = None

    def remembers(self) -> dict[str, Any]:
        return {
            "last_step": self.step,
            "trained_tokens": self.trained_tokens,
            "last_metrics": {
                "train_loss": self.train_loss,
                "train_mean_token_accuracy": self.train_mean_token_accuracy,
            },
            "step_time_s": self.step_time_s,
        }

    def unless_done(self) -> dict[str, Any]:
        return {"last_step": {"$lt": self.step}}


class ValidationCompleted(RunFact):
    """The loss over the whole validation file."""

    step: int
    total_steps: int
    train_loss: float | None = None
    full_valid_loss: float
    full_valid_mean_token_accuracy: float

    def remembers(self) -> dict[str, Any]:
        return {"last_validation": self.model_dump(mode="json")}

    def unless_done(self) -> dict[str, Any]:
        return {"last_validation.step": {"$not": {"$gte": self.step}}}


class CheckpointSaved(RunFact):
    """A checkpoint whose manifest has been verified; the run can go on from it."""

    step: int
    attempt: int
    blob: Blob
    metrics: dict[str, float] = Field(default_factory=dict)

    def remembers(self) -> dict[str, Any]:
        return {"checkpoint": self.model_dump(mode="json"), "strikes": 0}

    def unless_done(self) -> dict[str, Any]:
        return {"checkpoint.step": {"$not": {"$gte": self.step}}}


class CheckpointRejected(RunFact):
    """A checkpoint did not match its manifest; the run goes on from an older one, or from the start."""

    step: int
    problem: str
    falls_back_to_step: int | None = None


class PauseRequested(JobFact):
    """A user asked a placed run to save a checkpoint and leave its slots."""

    def remembers(self) -> dict[str, Any]:
        return {"wanted": "pause"}


class JobPaused(JobFact):
    """A job that held no slots was paused at once."""


class RunPaused(RunFact):
    """The run saved a checkpoint (unless it had made no step) and left its slots."""

    step: int | None = None


class JobResumed(JobFact):
    """A user put a paused job back into the queue."""

    def remembers(self) -> dict[str, Any]:
        return {"wanted": "run"}


class RunLost(RunFact):
    """The lease was watched unchanged for one TTL; the job waits for another attempt."""

    reason: str
    last_step: int | None = None

    def counts(self) -> dict[str, int]:
        return {"strikes": 1}


class RunFailed(RunFact):
    """The run ended by itself. A retryable failure puts the job back into the queue."""

    problem: Problem
    retryable: bool
    preempted: bool = Field(False, description="the node gave the slots up in order; that is no strike against the job")

    def remembers(self) -> dict[str, Any]:
        return {} if self.retryable else {"error": self.problem.model_dump(mode="json")}

    def counts(self) -> dict[str, int]:
        return {} if self.preempted else {"strikes": 1}


class RunFinished(RunFact):
    """Training is over: every step was made and the artifact is in the object store, not yet a model."""

    step: int
    artifact: Blob
    trained_tokens: int
    train_loss: float
    valid_loss: float | None = None
    metrics_key: str | None = None
    library_versions: dict[str, str] = Field(default_factory=dict)

    def remembers(self) -> dict[str, Any]:
        return {"finished": self.model_dump(mode="json"), "trained_tokens": self.trained_tokens}


# Jobs: from trained to answering


class ArtifactStaged(JobFact):
    """The artifact was verified and copied to its permanent place, under the name the model will have."""

    model_id: str
    model_name: str
    blob: Blob
    result_file_id: str | None = None

    def remembers(self) -> dict[str, Any]:
        return {"staged": self.model_dump(mode="json")}


class ServingVerified(JobFact):
    """An engine loaded the model, tokenized the golden rows as training did, and gave one answer."""

    node: str
    num_golden_rows: int
    num_answer_tokens: int
    latency_s: float


class ServingSkipped(JobFact):
    """No engine serves this base, or none could try the model, so nothing was verified."""

    reason: str


class ServingRefused(JobFact):
    """An engine tried the model and refused it, so the job has failed."""

    problem: Problem

    def remembers(self) -> dict[str, Any]:
        return {"error": self.problem.model_dump(mode="json")}


class ModelRegistered(JobFact):
    """The job has succeeded: its model answers under `model_name`. `weights_files` are its weights as files."""

    model_id: str
    model_name: str
    weights_files: tuple[str, ...] = ()

    def remembers(self) -> dict[str, Any]:
        return {"fine_tuned_model": self.model_name, "weights_files": list(self.weights_files)}


# Jobs: other ends


class JobFailed(JobFact):
    """The job ended without a model, for a reason that is no run's."""

    problem: Problem

    def remembers(self) -> dict[str, Any]:
        return {"error": self.problem.model_dump(mode="json")}


class JobCancelled(JobFact):
    """Final when committed; freeing the slots follows and is the node's business."""

    def remembers(self) -> dict[str, Any]:
        return {"wanted": "cancel"}


class JobRestarted(JobFact):
    """A user re-opened a job that had ended; attempts go on counting. No address of the API states it yet."""

    def remembers(self) -> dict[str, Any]:
        return {"wanted": "run", "error": None, "strikes": 0, "finished_at": None, "datasets": {}}

    def counts(self) -> dict[str, int]:
        return {"generation": 1}


class JobDeleted(JobFact):
    """A user deleted a job that had ended: nobody finds it any more, and what only it needed goes. Its model stays."""

    def remembers(self) -> dict[str, Any]:
        return {DELETED: True}


# Models


class ModelStaged(ModelFact):
    """The model's files are in their permanent place; nobody sees it before its job has succeeded."""

    name: str
    job_id: str
    base: str
    blob: Blob


class ModelPublished(ModelFact):
    """The model's job has succeeded: it is listed and answers."""

    name: str
    job_id: str


class ModelDeleted(ModelFact):
    """The model no longer answers; its files go when nothing refers to them."""


# Nodes


class NodeJoined(NodeFact):
    """A node began to renew its document, for the first time or again."""

    role: str = Field(description="trainer or inference")
    num_slots: int
    device: str
    address: str | None = None

    def remembers(self) -> dict[str, Any]:
        return {"role": self.role, "device": self.device, "address": self.address}


class NodeCapacityChanged(NodeFact):
    """The node offers another number of slots."""

    num_slots: int
    reason: str


class NodeLeft(NodeFact):
    """An orderly stop, or an operator's word that a lost machine is gone for good."""


class NodeLost(NodeFact):
    """Its renewals stopped for one TTL."""


def all_facts() -> dict[str, type[Fact]]:
    """Every concrete fact by its name, in the order of this file."""

    def leaves(of: type[Fact]) -> list[type[Fact]]:
        below = of.__subclasses__()
        return [of] if not below else [leaf for sub in below for leaf in leaves(sub)]

    return {fact.__name__: fact for fact in leaves(Fact)}


FACTS: dict[str, type[Fact]] = all_facts()


def read_fact(type_name: str, data: dict[str, Any]) -> Fact | None:
    """The typed fact, or None for a type of a newer contract. Raises ValueError when known and malformed."""
    shape = FACTS.get(type_name)
    return shape.model_validate(data) if shape else None
