"""A run on a device that is too small for its forwards makes smaller ones, and the same steps."""

from pathlib import Path
from typing import Any

import pytest

from builders.small_memory import memory_for
from builders.training_runs import Recorder, make_data, make_spec, run_here, sha256
from luthier_trainer.protocol import Evaluated, Finished, Paused, Step
from luthier_trainer.training.errors import TrainingError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
STILL = {"lora_dropout": 0.0}
"""Without dropout, whose numbers depend on how a step is split."""
ROWS = range(34, 49)
"""How many tokens the rows have; four or five of them make a step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def assert_same(out: Recorder, other: Recorder) -> None:
    """Equal up to rounding."""
    for one, two in zip(out.of(Step), other.of(Step), strict=True):
        assert one.loss == pytest.approx(two.loss, abs=1e-4)
        assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-2)
        assert (one.trained_tokens, one.learning_rate) == (two.trained_tokens, two.learning_rate)
    told = [(report.step, pytest.approx(report.valid_loss, abs=1e-4)) for report in out.of(Evaluated)]
    assert [(report.step, report.valid_loss) for report in other.of(Evaluated)] == told


@pytest.mark.parametrize("asked", [{}, {"packing": True, "batch_size": 1}], ids=["padded", "packed"])
def test_forwards_that_do_not_fit_are_halved_once_and_the_steps_are_the_same(
    data: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    roomy, whole = run_here(make_spec(data, tmp_path / "roomy", STILL | asked))
    with memory_for(100) as failed:
        end, out = run_here(make_spec(data, tmp_path / "small", STILL | asked))
    assert isinstance(end, Finished)
    assert isinstance(roomy, Finished)
    assert_same(out, whole)
    assert end.trained_tokens == roomy.trained_tokens
    assert 1 <= len(failed) <= 3, "what was learnt holds for the rest of the run"
    assert failed == sorted(failed, reverse=True)


def test_a_row_that_does_not_fit_alone_is_trained_on_with_activations_computed_again(
    data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"validation_file": None}
    _, whole = run_here(make_spec(data, tmp_path / "roomy", STILL, **fields))
    with memory_for(20, recomputing=100) as failed:
        end, out = run_here(make_spec(data, tmp_path / "small", STILL, **fields))
    assert isinstance(end, Finished)
    assert_same(out, whole)
    assert failed[-1] in ROWS
    assert len(failed) <= 4


def test_what_a_run_learnt_of_its_device_outlives_a_pause(data: Path, tmp_path: Path) -> None:
    """With dropout: a step that is made anew draws the numbers of its first try, or the ends would differ."""
    with memory_for(20, recomputing=60):
        whole, alone = run_here(make_spec(data, tmp_path / "whole"))
    with memory_for(20, recomputing=60):
        paused, first = run_here(make_spec(data, tmp_path / "a1"), stop_after_step=4)
    assert isinstance(paused, Paused)
    with memory_for(20, recomputing=60) as failed:
        end, second = run_here(make_spec(data, tmp_path / "a2", attempt=2, resume_from=paused.directory))
    assert failed == []
    assert isinstance(end, Finished)
    assert isinstance(whole, Finished)
    told = [(step.step, step.loss, step.grad_norm) for step in first.of(Step) + second.of(Step)]
    assert told == [(step.step, step.loss, step.grad_norm) for step in alone.of(Step)]
    assert sha256(end.directory) == sha256(whole.directory)


def test_a_row_that_fits_in_no_way_ends_the_run_with_its_reason(data: Path, tmp_path: Path) -> None:
    with (
        memory_for(20) as failed,
        pytest.raises(TrainingError, match=r"A single row of \d+ tokens did not fit") as caught,
    ):
        run_here(make_spec(data, tmp_path / "out", validation_file=None))
    assert caught.value.reason == "out_of_memory"
    assert not caught.value.is_retryable
    assert failed[-1] == failed[-2], "it was tried again with activations computed anew"
