"""Training on a tiny base in this process, and what it reports."""

import hashlib
import os
from pathlib import Path
from typing import Any

from builders.bases import make_tiny_base, write_chat_file
from luthier_trainer.checkpoints import ADAPTER_FILES
from luthier_trainer.protocol import Finished, Paused, Progress, RunSpec, Step
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.sft import train
from luthier_trainer.training.stopping import StopFlag
from luthier_trainer.training.watchdog import Watchdog


class Recorder(ProgressWriter):
    """Keeps the reports, and asks to stop when one of them matches."""

    def __init__(self, stop: StopFlag, stop_after_step: int | None) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.reports: list[Progress] = []
        self._stop, self._stop_after_step = stop, stop_after_step

    def put(self, report: Progress) -> None:
        self.reports.append(report)
        if isinstance(report, Step) and report.step == self._stop_after_step:
            self._stop._is_set = True
        super().put(report)

    def of(self, kind: type[Any]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]


class StoppingWatchdog(Watchdog):
    """Asks to stop when the nth forward of the run begins."""

    def __init__(self, stop: StopFlag, stop_in_forward: int | None) -> None:
        self._stop, self._stop_in_forward, self._num_forwards = stop, stop_in_forward, 0
        super().__init__(120, 600, lambda: None)

    def beat(self, work: int = 0) -> None:
        self._num_forwards += work > 0
        if work and self._num_forwards == self._stop_in_forward:
            self._stop._is_set = True
        super().beat(work)


def make_data(directory: Path) -> Path:
    """A tiny base, 18 rows to train on and 5 to validate."""
    make_tiny_base(directory / "base")
    write_chat_file(directory / "train.jsonl", 18)
    write_chat_file(directory / "valid.jsonl", 5, start=100)
    return directory


def make_spec(data: Path, output: Path, hyperparameters: dict[str, Any] | None = None, **fields: Any) -> RunSpec:
    wanted = {
        "n_epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.2,
        "context_length": 256, **(hyperparameters or {}),
    }  # fmt: skip
    values = {
        "job_id": "ftjob-1", "attempt": 1, "seed": 7, "num_threads": 1, "device": "cpu", "base_dir": data / "base",
        "train_file": data / "train.jsonl", "validation_file": data / "valid.jsonl", **fields,
    }  # fmt: skip
    return RunSpec.model_validate({**values, "output_dir": output, "hyperparameters": wanted})


def run_here(
    spec: RunSpec, stop_after_step: int | None = None, stop_in_forward: int | None = None
) -> tuple[Finished | Paused, Recorder]:
    """Train in this process; asked to stop when a step is reported or a forward begins."""
    stop = StopFlag()
    out = Recorder(stop, stop_after_step)
    watchdog = StoppingWatchdog(stop, stop_in_forward)
    try:
        return train(spec, out, stop, watchdog), out
    finally:
        watchdog.close()
        out.close()


def sha256(directory: Path) -> list[str]:
    return [hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in ADAPTER_FILES]
