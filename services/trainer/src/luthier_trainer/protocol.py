"""What the service and its child say to each other: a run's spec, progress lines, exit codes; pure.

The service writes `RUN_DIR/run.json` (`RunSpec`) and starts `python -m luthier_trainer.training RUN_DIR`. The child
writes one JSON line per `Progress` to the descriptor that `LUTHIER_PROGRESS_FD` names; stdout and stderr are its log.
SIGTERM asks it to drop the running step, to save what the one before made, and to end as paused. It deletes no
checkpoint.
"""

from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

RUN_FILE = "run.json"
PROGRESS_FD_VARIABLE = "LUTHIER_PROGRESS_FD"
PARENT_PID_VARIABLE = "LUTHIER_PARENT_PID"
MAX_STEP_REPORTS = 2000


class ExitCode(IntEnum):
    """How a child ended; any other code (or a signal) is a crash."""

    FINISHED = 0
    PAUSED = 10
    FAILED_BY_DATA = 20
    FAILED = 30


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SftHyperparameters(_Shape):
    """Resolved hyperparameters of a supervised run: nothing is left to decide."""

    n_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="rows (packed: filled rows) per optimiser step")
    learning_rate: float = Field(gt=0)
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="of the steps really made; wins over warmup_steps")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 switches clipping off")
    lora: bool = Field(True, description="false trains all weights")
    lora_r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"
    context_length: int = Field(ge=2, description="longest row in tokens")
    packing: bool = Field(False, description="fill each row of a batch with several examples")

    def warmup_of(self, total_steps: int) -> int:
        """Steps that warm up: packed, a run makes fewer steps than was known when the job was placed."""
        if self.warmup_ratio is None:
            return min(self.warmup_steps, total_steps)
        return int(self.warmup_ratio * total_steps)


class RunSpec(_Shape):
    """All that a child needs to know; paths are local."""

    job_id: str
    attempt: int = Field(ge=1)
    method: Literal["supervised"] = "supervised"
    base_dir: Path
    train_file: Path
    validation_file: Path | None = None
    output_dir: Path
    resume_from: Path | None = Field(None, description="a verified checkpoint directory")
    seed: int
    hyperparameters: SftHyperparameters
    on_overlength: Literal["error", "truncate", "drop"] = "error"
    checkpoint_every_steps: int | None = Field(None, ge=1, description="beside the end of each epoch")
    checkpoint_every_s: float | None = Field(None, gt=0, description="beside those, so long after the last one")
    log_every_steps: int | None = Field(None, ge=1, description=f"none: at most {MAX_STEP_REPORTS} reports a run")
    eval_every_steps: int | None = Field(None, ge=1, description="a look at some validation rows; all at epoch ends")
    max_steps: int | None = Field(None, ge=1, description="end earlier than the epochs say")
    num_threads: int | None = Field(None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")
    max_tokens_per_forward: int | None = Field(
        None, ge=1, description="bounds memory; changes no result beyond rounding"
    )
    stall_after_s: float = Field(120.0, gt=0, description="a forward may take this long, or ten times the median pace")


class Started(_Shape):
    """Data and model are loaded; steps follow. `resolved` goes into the lineage."""

    kind: Literal["started"] = "started"
    total_steps: int
    steps_per_epoch: int
    start_step: int
    num_epochs: int
    num_examples: int
    num_skipped_rows: int
    num_train_tokens: int = Field(description="trained tokens of the whole run")
    log_every_steps: int
    resolved: dict[str, Any]


class Step(_Shape):
    """One optimiser step. Means are over trained tokens; counts are since the run's first step, resumes included."""

    kind: Literal["step"] = "step"
    step: int
    loss: float
    mean_token_accuracy: float
    learning_rate: float
    grad_norm: float | None
    trained_tokens: int
    epoch: float
    step_time_s: float
    tokens_per_s: float = Field(description="tokens read, padding left out")


class Evaluated(_Shape):
    """Loss on validation rows; `full` when on all of them."""

    kind: Literal["evaluated"] = "evaluated"
    step: int
    valid_loss: float
    valid_mean_token_accuracy: float
    full: bool
    train_loss: float | None = Field(None, description="of that very step; none before the first one")


class CheckpointWritten(_Shape):
    """A complete checkpoint directory stands; it holds what a resume needs."""

    kind: Literal["checkpoint_written"] = "checkpoint_written"
    step: int
    epoch: float
    directory: Path
    manifest_sha256: str
    metrics: dict[str, float]
    trained_tokens: int
    interim: bool = Field(False, description="made by the clock: worth keeping only until later ones stand")


class Finished(_Shape):
    """All steps are done; `directory` holds only what may be published."""

    kind: Literal["finished"] = "finished"
    step: int
    directory: Path
    manifest_sha256: str
    trained_tokens: int
    train_loss: float | None = Field(description="of the last step")
    metrics: dict[str, float]


class Paused(_Shape):
    """Stopped on request; without a directory there is nothing beyond what the run began with."""

    kind: Literal["paused"] = "paused"
    step: int
    directory: Path | None


class Failed(_Shape):
    """`reason` is a code of `FailureReason`; the message holds no text of any row."""

    kind: Literal["failed"] = "failed"
    reason: str
    message: str
    retryable: bool


Progress = Annotated[
    Started | Step | Evaluated | CheckpointWritten | Finished | Paused | Failed, Field(discriminator="kind")
]
_PROGRESS: TypeAdapter[Progress] = TypeAdapter(Progress)


def parse_progress(line: bytes | str) -> Progress:
    """One line of a child; raises pydantic's `ValidationError`."""
    return _PROGRESS.validate_json(line)


def read_run(run_dir: Path) -> RunSpec:
    """The spec that the service left in a run directory."""
    return RunSpec.model_validate_json((run_dir / RUN_FILE).read_bytes())
