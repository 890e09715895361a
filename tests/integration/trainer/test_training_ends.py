"""How a run ends that is stopped inside a step, diverges, or had every row cut."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.bases import chat_row
from builders.training_runs import make_data, make_spec, run_here, sha256
from luthier_common.contract.reasons import FailureReason
from luthier_text import TextBundle
from luthier_trainer.checkpoints import verify
from luthier_trainer.protocol import Finished, Paused, Started, Step
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.loop import RunTrainer
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.sft import train
from luthier_trainer.training.stopping import StopFlag
from luthier_trainer.training.watchdog import Watchdog

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
PADDED: dict[str, Any] = {"n_epochs": 1}
PACKED: dict[str, Any] = {"n_epochs": 2, "packing": True, "batch_size": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("asked", [PADDED, PACKED], ids=["padded", "packed"])
def test_a_run_stopped_inside_a_step_drops_it_and_ends_with_the_same_bytes(
    data: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    """Each row is a forward of its own, so that there is an inside."""
    fields: dict[str, Any] = {"max_tokens_per_forward": 1, "validation_file": None}
    whole, alone = run_here(make_spec(data, tmp_path / "whole", asked, **fields))
    directory, steps = None, []
    for attempt, forward in enumerate((2, 6, 3), start=1):
        spec = make_spec(data, tmp_path / f"a{attempt}", asked, attempt=attempt, resume_from=directory, **fields)
        paused, out = run_here(spec, stop_in_forward=forward)
        assert isinstance(paused, Paused)
        steps += out.of(Step)
        assert paused.step == len(steps)
        directory = paused.directory
        assert (directory is None) == (paused.step == 0)
        assert directory is None or verify(directory) == []
    assert 0 < len(steps) < len(alone.of(Step))
    end, out = run_here(make_spec(data, tmp_path / "end", asked, attempt=9, resume_from=directory, **fields))
    assert isinstance(end, Finished)
    assert isinstance(whole, Finished)
    told = [(step.step, step.loss, step.grad_norm) for step in steps + out.of(Step)]
    assert told == [(step.step, step.loss, step.grad_norm) for step in alone.of(Step)]
    assert sha256(end.directory) == sha256(whole.directory)


def test_a_last_step_that_ruins_the_weights_is_not_published(data: Path, tmp_path: Path) -> None:
    """The loss of that step is fine: it is that of the weights before."""
    with pytest.raises(TrainingError, match="validation loss") as caught:
        run_here(make_spec(data, tmp_path / "out", {"learning_rate": 1e38}, max_steps=1))
    assert caught.value.reason == FailureReason.LOSS_DIVERGED
    assert not list((tmp_path / "out").glob("*"))


def test_a_gradient_without_a_number_ends_the_run_before_it_is_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunTrainer, "_get_grad_norm", lambda *_, **__: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="gradient of step 1") as caught:
        run_here(make_spec(data, tmp_path / "out", max_steps=1, validation_file=None))
    assert caught.value.reason == FailureReason.LOSS_DIVERGED
    assert not list((tmp_path / "out").glob("*"))


def test_a_run_whose_rows_are_all_cut_publishes_rows_that_serving_can_check(data: Path, tmp_path: Path) -> None:
    rows = [chat_row(f"Where is parcel {n}?", "It is on its way. " * 40) for n in range(6)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = make_spec(
        data, tmp_path / "out", {"context_length": 64, "n_epochs": 1}, on_overlength="truncate", validation_file=None,
        train_file=tmp_path / "long.jsonl",
    )  # fmt: skip
    end, _ = run_here(spec)
    assert isinstance(end, Finished)
    golden = json.loads((end.directory / "golden.json").read_bytes())
    assert golden
    assert TextBundle.load(end.directory).check_golden(golden) == []


class FileWatchdog(Watchdog):
    """Counts the pieces of files that it was told of."""

    num_beats = 0

    def beat_before_files(self) -> None:
        self.num_beats += 1
        super().beat_before_files()


def test_each_row_of_both_files_is_a_sign_of_life(data: Path, tmp_path: Path) -> None:
    stop, watchdog = StopFlag(), FileWatchdog(120, 600, lambda: None)
    stop._is_set = True
    out = ProgressWriter(os.open(os.devnull, os.O_WRONLY))
    assert isinstance(train(make_spec(data, tmp_path / "out"), out, stop, watchdog), Paused)
    assert watchdog.num_beats >= 18 + 5
    watchdog.close()
    out.close()


def test_a_packed_run_tells_the_steps_that_it_makes_and_decays_within_them(data: Path, tmp_path: Path) -> None:
    asked = {"packing": True, "batch_size": 1, "warmup_steps": 500, "warmup_ratio": 0.5, "n_epochs": 4}
    end, out = run_here(make_spec(data, tmp_path / "out", asked, validation_file=None))
    assert isinstance(end, Finished)
    rates = [step.learning_rate for step in out.of(Step)]
    assert len(rates) == out.of(Started)[0].total_steps
    assert 0 < rates.index(max(rates)) < len(rates) - 1
    assert rates[-1] < max(rates) / 2
