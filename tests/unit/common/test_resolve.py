"""What `auto` becomes."""

from typing import Any

import pytest

from luthier_common.contract.resolve import resolve
from luthier_common.contract.spec import Hyperparameters, JobSpec, ResolvedHyperparameters


def resolved(num_examples: int = 1000, of_base: int = 2048, **asked: Any) -> ResolvedHyperparameters:
    spec = JobSpec(model="m", training_file="file-1", seed=7, hyperparameters=Hyperparameters(**asked))
    return resolve(spec, num_examples, of_base)


@pytest.mark.parametrize(
    ("num_examples", "n_epochs"),
    [(1, 25), (10, 10), (33, 3), (34, 3), (1000, 3), (8333, 3), (8334, 2), (25_000, 1), (1_000_000, 1), (4, 25)],
)
def test_few_examples_are_seen_more_often(num_examples: int, n_epochs: int) -> None:
    assert resolved(num_examples).n_epochs == n_epochs


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 1), (999, 1), (1000, 2), (10**6, 256)])
def test_the_batch_grows_with_the_file(num_examples: int, batch_size: int) -> None:
    assert resolved(num_examples).batch_size == batch_size


def test_every_auto_is_a_number() -> None:
    got = resolved(200)
    assert (got.n_epochs, got.batch_size, got.total_steps, got.warmup_steps) == (3, 1, 600, 18)
    assert (got.learning_rate, got.learning_rate_multiplier, got.base_learning_rate) == (2e-4, 1.0, 2e-4)
    assert (got.lora_r, got.lora_alpha, got.seed) == (16, 32, 7)


def test_what_the_user_says_holds() -> None:
    got = resolved(
        100, n_epochs=2, batch_size=8, learning_rate_multiplier=0.5, lora=False, warmup_steps=3, lora_r=8, lora_alpha=8
    )
    assert (got.n_epochs, got.batch_size, got.total_steps, got.warmup_steps) == (2, 8, 26, 3)
    assert (got.learning_rate, got.base_learning_rate, got.lora_alpha) == (0.5e-5, 1e-5, 8)


def test_an_absolute_rate_says_what_multiplier_it_is() -> None:
    got = resolved(learning_rate=1e-4)
    assert got.learning_rate == 1e-4
    assert got.learning_rate_multiplier == pytest.approx(0.5)


def test_warm_up_never_outlasts_the_run() -> None:
    assert resolved(10, n_epochs=1, warmup_steps=100).warmup_steps == 10
    assert resolved(10, n_epochs=1, warmup_ratio=0.5).warmup_steps == 5
    assert resolved(10, n_epochs=1, warmup_ratio=0.0).warmup_steps == 0


def test_a_run_knows_whether_a_share_or_a_number_of_steps_warms_up() -> None:
    assert resolved(warmup_ratio=0.5).warmup_ratio == 0.5
    assert resolved().warmup_ratio == 0.03
    assert resolved(warmup_steps=0).warmup_ratio is None


@pytest.mark.parametrize(
    ("asked", "of_base", "got"),
    [(None, 2048, 2048), (None, 131_072, 8192), (512, 2048, 512), (16_384, 131_072, 16_384), (4096, 2048, 2048)],
)
def test_rows_are_never_longer_than_the_base_can_see(asked: int | None, of_base: int, got: int) -> None:
    assert resolved(of_base=of_base, context_length=asked).context_length == got
