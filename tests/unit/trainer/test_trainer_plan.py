"""Which rows meet in which step."""

import random

from luthier_trainer.training.plan import (
    ForwardLimits,
    MicroBatch,
    num_held,
    pack_rows,
    plan_run,
    split_again,
    split_flat,
    split_padded,
)

LIMITS = ForwardLimits(max_tokens=200, overhead_tokens=16)


def make_lengths(number: int) -> list[int]:
    source = random.Random(3)
    return [source.randint(5, 150) for _ in range(number)]


def rows_of(step: tuple[MicroBatch, ...]) -> list[int]:
    return [row for micro in step for row in micro.rows]


def test_every_epoch_reads_each_row_once() -> None:
    lengths = make_lengths(37)
    plan = plan_run(lengths, batch_size=8, n_epochs=3, seed=1, limits=LIMITS)
    assert plan.steps_per_epoch == 5
    assert plan.total_steps == 15
    for epoch in range(3):
        steps = plan.steps[epoch * 5 : epoch * 5 + 5]
        assert sorted(row for step in steps for row in rows_of(step)) == list(range(37))
        assert [len(rows_of(step)) for step in steps] == [8, 8, 8, 8, 5]


def test_epochs_have_different_orders_and_a_seed_always_the_same() -> None:
    lengths = make_lengths(40)
    plan = plan_run(lengths, batch_size=8, n_epochs=2, seed=1, limits=LIMITS)
    assert plan.steps[:5] != plan.steps[5:]
    assert plan == plan_run(lengths, batch_size=8, n_epochs=2, seed=1, limits=LIMITS)
    assert plan != plan_run(lengths, batch_size=8, n_epochs=2, seed=2, limits=LIMITS)


def test_max_steps_cuts_the_same_order() -> None:
    lengths = make_lengths(40)
    whole = plan_run(lengths, batch_size=8, n_epochs=2, seed=1, limits=LIMITS)
    cut = plan_run(lengths, batch_size=8, n_epochs=2, seed=1, limits=LIMITS, max_steps=7)
    assert cut.steps == whole.steps[:7]
    assert [step for step in range(1, 8) if cut.is_epoch_end(step)] == [5, 7]


def test_forwards_stay_below_the_limit_and_waste_little() -> None:
    lengths = make_lengths(64)
    parts = split_padded(range(64), lengths, LIMITS)
    assert sorted(rows_of(parts)) == list(range(64))
    padded = [len(part.rows) * max(lengths[row] for row in part.rows) for part in parts]
    assert all(cost <= LIMITS.max_tokens for cost in padded)
    assert sum(padded) < 1.1 * sum(lengths)


def test_a_row_longer_than_the_limit_stands_alone() -> None:
    assert split_padded([0, 1], [500, 10], LIMITS) == (MicroBatch((1,)), MicroBatch((0,)))
    assert split_flat([0, 1], [500, 10], LIMITS) == [MicroBatch((0,)), MicroBatch((1,))]


def test_a_smaller_limit_splits_what_is_above_it_and_nothing_else() -> None:
    lengths = make_lengths(60)
    half = ForwardLimits(max_tokens=100, overhead_tokens=16)
    padded = split_padded(range(60), lengths, LIMITS)
    for micro in (*padded, MicroBatch((3, 1, 2), flat=True), MicroBatch((max(range(60), key=lengths.__getitem__),))):
        assert split_again(micro, lengths, ForwardLimits(max_tokens=10**6, overhead_tokens=16)) == (micro,)
        parts = split_again(micro, lengths, half)
        assert sorted(rows_of(tuple(parts))) == sorted(micro.rows)
        assert all(num_held(part, lengths) <= half.max_tokens or len(part.rows) == 1 for part in parts)


def test_packed_lines_hold_each_row_once_and_fit() -> None:
    lengths = make_lengths(200)
    lines = pack_rows(lengths, 256, seed=5)
    assert sorted(row for line in lines for row in line) == list(range(200))
    assert all(sum(lengths[row] for row in line) <= 256 for line in lines)
    assert sum(lengths) / (256 * len(lines)) > 0.95


def test_packing_makes_fewer_steps() -> None:
    lengths = make_lengths(200)
    packed = plan_run(lengths, batch_size=4, n_epochs=1, seed=1, limits=LIMITS, pack_length=512)
    plain = plan_run(lengths, batch_size=4, n_epochs=1, seed=1, limits=LIMITS)
    assert packed.total_steps < plain.total_steps / 3
    assert sorted(row for step in packed.steps for row in rows_of(step)) == list(range(200))
