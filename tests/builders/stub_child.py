"""A training child without torch: `python stub_child.py PACE_FILE RUN_DIR` speaks the real protocol and trains nothing.

Checkpoints and the adapter are real files that registry and inference verify and serve with any base of the Llama kind.
Its numbers follow from the seed and the step alone, so a resumed run ends with the bytes of one that was not. The pace
is a JSON file (`Pace`), read again at each step: a test may change it while runs are under way.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save_file

from luthier_text import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextBundle
from luthier_trainer.checkpoints import ADAPTER_FILES, STATE_FILES, read_manifest, seal, staged, verify
from luthier_trainer.protocol import (
    MAX_STEP_REPORTS,
    PARENT_PID_VARIABLE,
    PROGRESS_FD_VARIABLE,
    CheckpointWritten,
    Evaluated,
    ExitCode,
    Failed,
    Finished,
    Paused,
    RunSpec,
    Started,
    Step,
    read_run,
)
from luthier_trainer.training.data import TokenRows, read_rows
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.stopping import StopFlag, die_with_parent


class Pace(BaseModel):
    """How fast a stub works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps_per_s: float = Field(20.0, gt=0)
    load_s: float = Field(0.0, ge=0, description="before it says that it started")
    save_s: float = Field(0.0, ge=0, description="in the middle of a save")


class PaceFile:
    """The last pace that could be read: a file that is being written keeps the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = Pace()

    @property
    def now(self) -> Pace:
        try:
            self._last = Pace.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return self._last
        return self._last


class StubRun:
    """One run, from its spec to its last word."""

    def __init__(self, spec: RunSpec, out: ProgressWriter, stop: StopFlag, pace: PaceFile) -> None:
        self._spec, self._out, self._stop, self._pace = spec, out, stop, pace
        self._rows = _rows_of(spec, spec.train_file)
        self._has_validation = spec.validation_file is not None
        self._steps_per_epoch = -(-len(self._rows) // spec.hyperparameters.batch_size)
        asked = self._steps_per_epoch * spec.hyperparameters.n_epochs
        self._total = min(asked, spec.max_steps or asked)
        self._log_every_steps = spec.log_every_steps or -(-self._total // MAX_STEP_REPORTS)
        self._saved = spec.resume_from
        self._metrics: dict[str, float] = {}

    def work(self) -> Finished | Paused:
        """Make the steps that are left, at the pace."""
        step = self._check_resumed()
        self._wait(self._pace.now.load_s)
        if self._stop.is_set:
            return Paused(step=step, directory=self._saved)
        self._out.put(self._started(step))
        self._evaluate(step)
        while step < self._total and not self._stop.is_set:
            step += 1
            self._wait(1 / self._pace.now.steps_per_s)
            self._report(step)
            self._evaluate(step)
            every = self._spec.checkpoint_every_steps
            if self._stop.is_set or self._is_epoch_end(step) or (every and step % every == 0):
                self._save(step)
        if step < self._total or self._saved is None:
            return Paused(step=step, directory=self._saved)
        return self._publish(self._saved)

    def _check_resumed(self) -> int:
        if self._spec.resume_from is None:
            return 0
        if problems := verify(self._spec.resume_from):
            raise ValueError("; ".join(problems))
        manifest = read_manifest(self._spec.resume_from)
        self._metrics = dict(manifest.metrics)
        return manifest.step

    def _wait(self, seconds: float) -> None:
        """Sleep, but never past a request to stop."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0 and not self._stop.is_set:
            time.sleep(min(left_s, 0.05))

    def _started(self, start_step: int) -> Started:
        return Started(
            total_steps=self._total,
            steps_per_epoch=self._steps_per_epoch,
            start_step=start_step,
            num_epochs=self._spec.hyperparameters.n_epochs,
            num_examples=len(self._rows),
            num_skipped_rows=self._rows.num_skipped,
            num_train_tokens=self._tokens_at(self._total),
            log_every_steps=self._log_every_steps,
            resolved=self._resolved(),
        )

    def _resolved(self) -> dict[str, Any]:
        return {
            "hyperparameters": self._spec.hyperparameters.model_dump(mode="json"),
            "seed": self._spec.seed,
            "total_steps": self._total,
            "device": "cpu",
            "versions": {"numpy": np.__version__},
        }

    def _tokens_at(self, step: int) -> int:
        return step * sum(self._rows.num_trained) // self._steps_per_epoch

    def _is_epoch_end(self, step: int) -> bool:
        return step % self._steps_per_epoch == 0 or step == self._total

    def _report(self, step: int) -> None:
        self._metrics = {"train_loss": 4 / (1 + step), "train_mean_token_accuracy": step / (1 + step)}
        if step % self._log_every_steps and not self._is_epoch_end(step) and not self._stop.is_set:
            return
        step_time_s = 1 / self._pace.now.steps_per_s
        self._out.put(
            Step(
                step=step,
                loss=self._metrics["train_loss"],
                mean_token_accuracy=self._metrics["train_mean_token_accuracy"],
                learning_rate=self._spec.hyperparameters.learning_rate,
                grad_norm=1.0,
                trained_tokens=self._tokens_at(step),
                epoch=step / self._steps_per_epoch,
                step_time_s=step_time_s,
                tokens_per_s=self._tokens_at(1) / step_time_s,
            )
        )

    def _evaluate(self, step: int) -> None:
        """On all validation rows, before the first step and after each epoch."""
        if not self._has_validation or not self._is_epoch_end(step) or "full_valid_loss" in self._metrics:
            return
        loss, accuracy = 4.5 / (1 + step), step / (2 + step)
        self._metrics |= {"valid_loss": loss, "valid_mean_token_accuracy": accuracy}
        self._metrics |= {"full_valid_loss": loss, "full_valid_mean_token_accuracy": accuracy}
        train_loss = self._metrics.get("train_loss")
        self._out.put(
            Evaluated(step=step, valid_loss=loss, valid_mean_token_accuracy=accuracy, full=True, train_loss=train_loss)
        )

    def _save(self, step: int) -> None:
        target = self._spec.output_dir / f"step-{step}"
        with staged(target) as staging:
            _write_adapter(self._spec, staging, step)
            time.sleep(self._pace.now.save_s)
            for name in STATE_FILES:
                (staging / name).write_text(json.dumps({"step": step}))
            digest = seal(staging, "checkpoint", self._spec.job_id, self._spec.attempt, step, self._metrics)
        self._saved = target
        self._out.put(
            CheckpointWritten(
                step=step,
                epoch=step / self._steps_per_epoch,
                directory=target,
                manifest_sha256=digest,
                metrics=self._metrics,
                trained_tokens=self._tokens_at(step),
            )
        )

    def _publish(self, checkpoint: Path) -> Finished:
        final = self._spec.output_dir / "final"
        with staged(final) as staging:
            for name in ADAPTER_FILES:
                shutil.copyfile(checkpoint / name, staging / name)
            for name in (TOKENIZER_FILE, TEMPLATE_FILE, TEXT_FILE):
                shutil.copyfile(self._spec.base_dir / name, staging / name)
            (staging / "golden.json").write_text(json.dumps(self._rows.golden, ensure_ascii=False))
            (staging / "training.json").write_text(json.dumps(self._resolved(), indent=2, sort_keys=True) + "\n")
            digest = seal(staging, "final", self._spec.job_id, self._spec.attempt, self._total, self._metrics)
        return Finished(
            step=self._total,
            directory=final,
            manifest_sha256=digest,
            trained_tokens=self._tokens_at(self._total),
            train_loss=self._metrics["train_loss"],
            metrics=self._metrics,
        )


def _rows_of(spec: RunSpec, path: Path) -> TokenRows:
    text = TextBundle.load(spec.base_dir)
    return read_rows(path, text, spec.hyperparameters.context_length, spec.on_overlength)


def _write_adapter(spec: RunSpec, directory: Path, step: int) -> None:
    """A LoRA of every layer's query projection; equal seeds and steps give equal bytes."""
    base = json.loads((spec.base_dir / "config.json").read_bytes())
    bundle = json.loads((spec.base_dir / "bundle.json").read_bytes())
    wanted, hidden, heads = spec.hyperparameters, base["hidden_size"], base["num_attention_heads"]
    outer = heads * (base.get("head_dim") or hidden // heads)
    random = np.random.default_rng([spec.seed % 2**32, step])
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(base["num_hidden_layers"]):
        for side, shape in (("A", (wanted.lora_r, hidden)), ("B", (outer, wanted.lora_r))):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
            tensors[name] = random.normal(0, 0.02, shape).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": f"{bundle['name']}@{bundle['digest']}",
        "bias": "none",
        "lora_alpha": wanted.lora_alpha,
        "lora_dropout": wanted.lora_dropout,
        "peft_type": "LORA",
        "r": wanted.lora_r,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(pace_file: Path, run_dir: Path) -> ExitCode:
    """Do what `run.json` says and tell how it ended."""
    stop = StopFlag.on_sigterm()
    die_with_parent(int(os.environ[PARENT_PID_VARIABLE]))
    out = ProgressWriter(int(os.environ[PROGRESS_FD_VARIABLE]))
    report: Finished | Paused | Failed
    try:
        report = StubRun(read_run(run_dir), out, stop, PaceFile(pace_file)).work()
    except TrainingError as error:
        report = Failed(reason=error.reason, message=error.message, retryable=error.is_retryable)
    out.put(report)
    out.close()
    match report:
        case Finished():
            return ExitCode.FINISHED
        case Paused():
            return ExitCode.PAUSED
        case _:
            return ExitCode.FAILED if report.retryable else ExitCode.FAILED_BY_DATA


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
