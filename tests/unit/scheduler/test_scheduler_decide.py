"""Which job gets which slots, and what the others are told."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luthier_scheduler.decide import Placement, Reason, TrainerNode, WaitingJob, decide

START = datetime(2026, 1, 1, tzinfo=UTC)


def a_job(number: int, **fields: Any) -> WaitingJob:
    return WaitingJob(id=f"ftjob-{number}", created_at=START + timedelta(seconds=number), **fields)


def a_node(name: str, num_slots: int = 1, free: tuple[int, ...] | None = None, **fields: Any) -> TrainerNode:
    return TrainerNode(name, num_slots, tuple(range(num_slots)) if free is None else free, **fields)


def placed(*args: Any, **kwargs: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {p.job_id: (p.node_id, p.slots) for p in decide(*args, max_strikes=3, **kwargs).placements}


def test_the_oldest_job_of_the_highest_priority_goes_first() -> None:
    jobs = [a_job(1), a_job(2, priority=5), a_job(3, priority=5)]
    decision = decide(jobs, [a_node("n")], max_strikes=3)
    assert decision.placements == (Placement("ftjob-2", 1, "n", (0,)),)
    assert [(wait.job_id, wait.position) for wait in decision.waits] == [("ftjob-3", 1), ("ftjob-1", 2)]


def test_a_job_is_told_why_it_waits() -> None:
    job = a_job(1, num_slots=4)
    assert decide([job], [], max_strikes=3).waits[0].reason is Reason.NO_NODES
    assert decide([job], [a_node("n", 2)], max_strikes=3).waits[0].reason is Reason.TOO_LARGE
    assert decide([job], [a_node("n", 4, free=(1,))], max_strikes=3).waits[0].reason is Reason.NO_FREE_SLOTS


def test_a_reason_is_news_only_when_it_is_another() -> None:
    known = a_job(1, reason="no_nodes", position=1)
    wait = decide([known], [], max_strikes=3).waits[0]
    assert not wait.is_news
    assert not wait.is_moved
    assert decide([known], [a_node("n", free=())], max_strikes=3).waits[0].is_news


def test_a_job_never_spans_nodes_and_takes_the_tightest_gap() -> None:
    nodes = [a_node("big", 8), a_node("small", 2)]
    assert placed([a_job(1, num_slots=2)], nodes) == {"ftjob-1": ("small", (0, 1))}
    assert placed([a_job(1, num_slots=2)], [a_node("a"), a_node("b")]) == {}


def test_small_jobs_do_not_starve_a_large_one() -> None:
    jobs = [a_job(1, num_slots=2), a_job(2), a_job(3)]
    nodes = [a_node("a", 2, free=(1,)), a_node("b", 2, free=())]
    decision = decide(jobs, nodes, max_strikes=3)
    assert decision.placements == ()
    assert [wait.job_id for wait in decision.waits] == ["ftjob-1", "ftjob-2", "ftjob-3"]


def test_a_job_that_can_never_fit_holds_nobody_up() -> None:
    assert placed([a_job(1, num_slots=9), a_job(2)], [a_node("n")]) == {"ftjob-2": ("n", (0,))}


def test_three_strikes_end_a_job() -> None:
    decision = decide([a_job(1, strikes=3), a_job(2, strikes=2)], [a_node("n")], max_strikes=3)
    assert decision.exhausted == ("ftjob-1",)
    assert [p.job_id for p in decision.placements] == ["ftjob-2"]


def test_an_interrupted_placement_goes_on_with_the_slots_it_had_claimed() -> None:
    nodes = [a_node("a", 2), a_node("b", 2, free=(), claimed={("ftjob-1", 3): (1,), ("other", 1): (0,)})]
    assert placed([a_job(1, attempt=2)], nodes) == {"ftjob-1": ("b", (1,))}
    assert placed([a_job(1, attempt=3)], nodes) == {"ftjob-1": ("a", (0,))}


@given(
    needs=st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2)), max_size=8),
    sizes=st.lists(st.integers(0, 4), max_size=4),
)
def test_no_slot_is_given_twice_and_every_job_has_an_answer(needs: list[tuple[int, int]], sizes: list[int]) -> None:
    jobs = [a_job(number, num_slots=need, priority=priority) for number, (need, priority) in enumerate(needs)]
    nodes = [a_node(f"n{number}", size) for number, size in enumerate(sizes)]
    decision = decide(jobs, nodes, max_strikes=3)
    given_slots = [(p.node_id, slot) for p in decision.placements for slot in p.slots]
    assert len(given_slots) == len(set(given_slots))
    wanted = {job.id: job.num_slots for job in jobs}
    assert all(len(p.slots) == wanted[p.job_id] for p in decision.placements)
    assert sorted([p.job_id for p in decision.placements] + [w.job_id for w in decision.waits]) == sorted(wanted)
    assert [wait.position for wait in decision.waits] == list(range(1, len(decision.waits) + 1))
