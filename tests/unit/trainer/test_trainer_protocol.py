"""What a job asked for, in the steps that its run really makes."""

import pytest
from pydantic import ValidationError

from luthier_common.contract.resolve import resolve
from luthier_common.contract.spec import Hyperparameters, JobSpec
from luthier_trainer.domain import child_hyperparameters
from luthier_trainer.protocol import SftHyperparameters
from luthier_trainer.training.plan import ForwardLimits, plan_run


def wanted(**asked: object) -> SftHyperparameters:
    spec = JobSpec(model="m", training_file="f", seed=1, hyperparameters=Hyperparameters.model_validate(asked))
    return child_hyperparameters(resolve(spec, 10_000, 8192))


def test_a_packed_run_warms_up_and_decays_within_its_own_steps() -> None:
    got = wanted(packing=True, warmup_ratio=0.1)
    plan = plan_run(
        [200] * 10_000, batch_size=got.batch_size, n_epochs=got.n_epochs, seed=1, limits=ForwardLimits(1024, 32),
        pack_length=got.context_length,
    )  # fmt: skip
    assert plan.total_steps == 26
    assert got.warmup_of(plan.total_steps) == 2
    assert wanted(packing=True).warmup_of(plan.total_steps) == 0


def test_steps_that_were_asked_for_hold_up_to_the_runs_end() -> None:
    assert wanted(warmup_steps=5).warmup_of(26) == 5
    assert wanted(warmup_steps=500).warmup_of(26) == 26


def test_a_run_that_is_not_packed_warms_up_as_its_job_shows() -> None:
    assert (wanted().warmup_steps, wanted().warmup_of(1000)) == (30, 30)


def test_a_dropout_that_leaves_nothing_to_train_is_refused() -> None:
    assert wanted(lora_dropout=0.99).lora_dropout == 0.99
    with pytest.raises(ValidationError, match="lora_dropout"):
        wanted(lora_dropout=1)


def test_a_job_that_was_placed_before_shares_were_pinned_keeps_its_steps() -> None:
    old = SftHyperparameters.model_validate({**wanted(warmup_steps=30).model_dump(), "warmup_ratio": None})
    assert old.warmup_of(1000) == 30
