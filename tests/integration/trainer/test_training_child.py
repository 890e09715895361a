"""Training on a tiny base, in this process and as the service starts it: no servers are needed."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.training_runs import Recorder, make_data, make_spec, run_here, sha256
from luthier_trainer.checkpoints import ADAPTER_FILES, read_manifest, verify
from luthier_trainer.protocol import (
    RUN_FILE,
    CheckpointWritten,
    Evaluated,
    ExitCode,
    Failed,
    Finished,
    Paused,
    RunSpec,
    Started,
    Step,
    parse_progress,
)
from luthier_trainer.training.data import TrainingError

# transformers and trl warn about names that they themselves still use.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Recorder]:
    end, out = run_here(make_spec(data, tmp_path_factory.mktemp("whole")))
    assert isinstance(end, Finished)
    return end, out


def test_a_run_learns_and_reports_every_step(whole: tuple[Finished, Recorder]) -> None:
    end, out = whole
    steps = out.of(Step)
    assert [step.step for step in steps] == list(range(1, 11))
    assert steps[-1].loss < steps[0].loss - 0.3
    assert steps[-1].trained_tokens == end.trained_tokens == out.of(Started)[0].num_train_tokens
    assert steps[-1].epoch == 2.0
    assert all(step.tokens_per_s > 0 for step in steps)
    assert end.train_loss == steps[-1].loss
    assert end.step == 10


def test_validation_runs_over_the_whole_file_before_the_first_step_and_at_each_epochs_end(
    whole: tuple[Finished, Recorder],
) -> None:
    end, out = whole
    base, first, last = out.of(Evaluated)
    assert (base.step, base.full) == (0, True)
    assert first.valid_loss < base.valid_loss
    assert (first.step, last.step) == (5, 10)
    assert first.full
    assert last.full
    assert last.valid_loss < first.valid_loss
    assert end.metrics["full_valid_loss"] == last.valid_loss


def test_what_is_published_holds_no_state_and_no_path(whole: tuple[Finished, Recorder], data: Path) -> None:
    final = whole[0].directory
    names = sorted(path.name for path in final.iterdir())
    assert names == sorted(
        [
            *ADAPTER_FILES,
            "tokenizer.json",
            "chat_template.jinja",
            "text.json",
            "golden.json",
            "training.json",
            "manifest.json",
        ]
    )
    assert verify(final) == []
    assert hashlib.sha256((final / "manifest.json").read_bytes()).hexdigest() == whole[0].manifest_sha256
    assert all(str(data).encode() not in (final / name).read_bytes() for name in names)
    assert json.loads((final / "adapter_config.json").read_bytes())["base_model_name_or_path"].startswith("tiny-llama@")


def test_checkpoints_are_whole_and_carry_their_metrics(whole: tuple[Finished, Recorder]) -> None:
    checkpoints = whole[1].of(CheckpointWritten)
    assert [checkpoint.step for checkpoint in checkpoints] == [5, 10]
    for checkpoint in checkpoints:
        assert verify(checkpoint.directory) == []
        assert read_manifest(checkpoint.directory).metrics == checkpoint.metrics
        assert "full_valid_loss" in checkpoint.metrics


@pytest.mark.parametrize("stop_after_step", [1, 3, 5, 7, 9])
def test_a_stopped_and_resumed_run_ends_with_the_same_bytes(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path, stop_after_step: int
) -> None:
    paused, first = run_here(make_spec(data, tmp_path / "a1"), stop_after_step)
    assert isinstance(paused, Paused)
    assert paused.step == stop_after_step
    assert paused.directory is not None
    end, second = run_here(make_spec(data, tmp_path / "a2", attempt=2, resume_from=paused.directory))
    assert isinstance(end, Finished)
    told = [(step.step, step.loss, step.grad_norm, step.trained_tokens) for step in first.of(Step) + second.of(Step)]
    assert told == [(step.step, step.loss, step.grad_norm, step.trained_tokens) for step in whole[1].of(Step)]
    assert sha256(end.directory) == sha256(whole[0].directory)
    assert end.metrics == whole[0].metrics
    validated = {report.step: report.valid_loss for report in first.of(Evaluated) + second.of(Evaluated)}
    assert validated == {report.step: report.valid_loss for report in whole[1].of(Evaluated)}


def test_a_stop_in_the_last_step_finishes(whole: tuple[Finished, Recorder], data: Path, tmp_path: Path) -> None:
    end, _ = run_here(make_spec(data, tmp_path / "out", validation_file=None), stop_after_step=10)
    assert isinstance(end, Finished)
    assert sha256(end.directory) == sha256(whole[0].directory)


@pytest.mark.parametrize("stop", [{"stop_after_step": 10}, {"stop_in_forward": 13}], ids=["before", "inside"])
def test_a_stop_before_the_end_of_the_last_validation_pauses_and_the_resumed_run_makes_up_for_it(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path, stop: dict[str, int]
) -> None:
    """Thirteen forwards: one a step, and one for the validation before the first and after each epoch."""
    paused, first = run_here(make_spec(data, tmp_path / "a1"), **stop)
    assert isinstance(paused, Paused)
    assert paused.step == 10
    assert [report.step for report in first.of(Evaluated)] == [0, 5]
    end, second = run_here(make_spec(data, tmp_path / "a2", attempt=2, resume_from=paused.directory))
    assert isinstance(end, Finished)
    assert not second.of(Step)
    assert second.of(Evaluated) == whole[1].of(Evaluated)[-1:]
    assert end.metrics == whole[0].metrics
    assert sha256(end.directory) == sha256(whole[0].directory)


def test_a_run_that_saves_by_the_clock_ends_with_the_same_bytes_and_resumes_from_there(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path
) -> None:
    end, out = run_here(make_spec(data, tmp_path / "a1", checkpoint_every_s=1e-9))
    assert isinstance(end, Finished)
    saved = {checkpoint.step: checkpoint for checkpoint in out.of(CheckpointWritten)}
    assert saved[1].interim, "due since the first step"
    assert [step for step in (5, 10) if saved[step].interim] == [], "the end of an epoch is kept"
    resumed, _ = run_here(make_spec(data, tmp_path / "a2", attempt=2, resume_from=saved[1].directory))
    assert isinstance(resumed, Finished)
    assert sha256(resumed.directory) == sha256(end.directory) == sha256(whole[0].directory)


def test_an_epochs_end_is_reported_whatever_the_interval_and_its_validation_has_its_loss(
    data: Path, tmp_path: Path
) -> None:
    _, out = run_here(make_spec(data, tmp_path / "out", log_every_steps=4))
    losses = {step.step: step.loss for step in out.of(Step)}
    assert list(losses) == [4, 5, 8, 10]
    told = [(report.step, report.train_loss) for report in out.of(Evaluated)]
    assert told == [(0, None), (5, losses[5]), (10, losses[10])]


def test_resuming_after_the_last_step_trains_no_further(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path
) -> None:
    last = whole[1].of(CheckpointWritten)[-1].directory
    end, out = run_here(make_spec(data, tmp_path / "out", attempt=2, resume_from=last))
    assert isinstance(end, Finished)
    assert not out.of(Step)
    assert sha256(end.directory) == sha256(whole[0].directory)
    assert end.train_loss == whole[0].train_loss


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "adapter_model.safetensors"])
def test_a_checkpoint_that_is_not_whole_is_refused(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path, name: str
) -> None:
    broken = tmp_path / "step-5"
    shutil.copytree(whole[1].of(CheckpointWritten)[0].directory, broken)
    (broken / name).unlink()
    with pytest.raises(TrainingError, match=name) as caught:
        run_here(make_spec(data, tmp_path / "out", resume_from=broken))
    assert caught.value.reason == "checkpoint_corrupt"


def test_how_a_step_is_split_into_forwards_does_not_change_it(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path
) -> None:
    fields = {"max_tokens_per_forward": 1, "max_steps": 3}
    _, single = run_here(make_spec(data, tmp_path / "1", {"lora_dropout": 0.0}, **fields))
    _, joined = run_here(make_spec(data, tmp_path / "2", {"lora_dropout": 0.0}, max_steps=3))
    for one, other in zip(single.of(Step), joined.of(Step), strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


def test_packed_rows_do_not_see_each_other(data: Path, tmp_path: Path) -> None:
    """One step over all rows has the same loss whether they lie packed, padded or alone."""
    told = []
    for name, packing, limit in (("packed", True, 4096), ("padded", False, 4096), ("alone", False, 1)):
        wanted = {"packing": packing, "batch_size": 64, "n_epochs": 1, "lora_dropout": 0.0}
        _, out = run_here(make_spec(data, tmp_path / name, wanted, max_tokens_per_forward=limit))
        told.append((out.of(Step)[0].loss, out.of(Step)[0].grad_norm))
    assert told[0] == pytest.approx(told[1], rel=1e-3)
    assert told[0] == pytest.approx(told[2], rel=1e-3)
    assert told[0][0] == pytest.approx(told[2][0], abs=1e-5)


def test_all_weights_can_be_trained(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path / "out", {"lora": False}, max_steps=3)
    end, _out = run_here(spec)
    assert isinstance(end, Finished)
    assert verify(end.directory) == []
    assert (end.directory / "model.safetensors").is_file()
    assert (end.directory / "config.json").is_file()
    assert not list(end.directory.glob("*.pt"))


def test_all_weights_are_trained_in_float32_so_that_small_updates_are_not_rounded_away(
    data: Path, tmp_path: Path
) -> None:
    spec = make_spec(data, tmp_path / "out", {"lora": False, "learning_rate": 1e-6}, dtype="bfloat16", max_steps=1)
    end, _ = run_here(spec)
    assert isinstance(end, Finished)
    before = load_file(data / "base" / "model.safetensors")
    after = load_file(end.directory / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    moved = [(after[name] - before[name].float()).abs().max().item() for name in after if "proj" in name]
    assert all(0 < change < 1e-5 for change in moved)


def start_child(spec: RunSpec, run_dir: Path) -> tuple[subprocess.Popen[bytes], int]:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / RUN_FILE).write_text(spec.model_dump_json())
    reading, writing = os.pipe()
    environment = {
        "PATH": os.environ["PATH"],
        "LUTHIER_PROGRESS_FD": str(writing),
        "LUTHIER_PARENT_PID": str(os.getpid()),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "luthier_trainer.training", str(run_dir)],
        env=environment, pass_fds=(writing,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writing)
    return child, reading


def test_sigterm_pauses_the_child_and_its_checkpoint_goes_on_to_the_same_end(data: Path, tmp_path: Path) -> None:
    many = {"n_epochs": 60}
    child, reading = start_child(make_spec(data, tmp_path / "out", many), tmp_path / "run")
    reports = []
    with os.fdopen(reading, "rb") as stream:
        for line in stream:
            reports.append(parse_progress(line))
            if isinstance(reports[-1], Step) and reports[-1].step == 2:
                child.send_signal(signal.SIGTERM)
    assert child.wait(30) == ExitCode.PAUSED
    paused = reports[-1]
    assert isinstance(paused, Paused)
    assert paused.step < 300
    assert paused.directory is not None
    end, _ = run_here(make_spec(data, tmp_path / "resumed", many, attempt=2, resume_from=paused.directory))
    whole, _ = run_here(make_spec(data, tmp_path / "whole", many))
    assert isinstance(end, Finished)
    assert isinstance(whole, Finished)
    assert sha256(end.directory) == sha256(whole.directory)


def test_a_fault_of_the_data_ends_the_child_with_its_reason(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mute.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    child, reading = start_child(
        make_spec(data, tmp_path / "out", train_file=tmp_path / "mute.jsonl"), tmp_path / "run"
    )
    with os.fdopen(reading, "rb") as stream:
        (report,) = [parse_progress(line) for line in stream]
    assert child.wait(30) == ExitCode.FAILED_BY_DATA
    assert isinstance(report, Failed)
    assert report.reason == "nothing_to_learn"
    assert not report.retryable


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_cannot_be_written_is_a_fault_of_storage(
    whole: tuple[Finished, Recorder], data: Path, tmp_path: Path, name: str
) -> None:
    """Each library that writes has a word of its own for it."""
    size = (whole[1].of(CheckpointWritten)[0].directory / name).stat().st_size
    child, reading = start_child(make_spec(data, tmp_path / "out"), tmp_path / "run")
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size - 1, size - 1))
    with os.fdopen(reading, "rb") as stream:
        *_, report = [parse_progress(line) for line in stream]
    assert child.wait(30) == ExitCode.FAILED
    assert isinstance(report, Failed)
    assert (report.reason, report.retryable) == ("storage", True)
    assert not list((tmp_path / "out").glob("step-*"))
