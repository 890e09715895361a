"""Which job gets which slots, and what the others are told."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luthier_scheduler import decide as pure
from luthier_scheduler.decide import Decision, Placement, Reason, TrainerNode, WaitingJob

START = datetime(2026, 1, 1, tzinfo=UTC)


def decide(jobs: Sequence[WaitingJob], nodes: Sequence[TrainerNode]) -> Decision:
    return pure.decide(jobs, nodes, max_strikes=3, retry_rest_s=15.0)


def a_job(number: int, **fields: Any) -> WaitingJob:
    return WaitingJob(id=f"ftjob-{number}", created_at=START + timedelta(seconds=number), **fields)


def a_node(name: str, num_slots: int = 1, free: tuple[int, ...] | None = None, **fields: Any) -> TrainerNode:
    return TrainerNode(name, num_slots, tuple(range(num_slots)) if free is None else free, **fields)


def placed(*args: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {p.job_id: (p.node_id, p.slots) for p in decide(*args).placements}


def test_the_oldest_job_of_the_highest_priority_goes_first() -> None:
    jobs = [a_job(1), a_job(2, priority=5), a_job(3, priority=5)]
    decision = decide(jobs, [a_node("n")])
    assert decision.placements == (Placement("ftjob-2", 1, "n", (0,)),)
    assert [(wait.job_id, wait.position) for wait in decision.waits] == [("ftjob-3", 1), ("ftjob-1", 2)]


def test_a_job_is_told_why_it_waits() -> None:
    job = a_job(1, num_slots=4)
    assert decide([job], []).waits[0].reason is Reason.NO_NODES
    assert decide([job], [a_node("n", 2)]).waits[0].reason is Reason.TOO_LARGE
    assert decide([job], [a_node("n", 4, free=(1,))]).waits[0].reason is Reason.NO_FREE_SLOTS


def test_a_reason_is_news_only_when_it_is_another() -> None:
    known = a_job(1, reason="no_nodes", position=1)
    wait = decide([known], []).waits[0]
    assert not wait.is_news
    assert not wait.is_moved
    assert decide([known], [a_node("n", free=())]).waits[0].is_news


@given(sizes=st.lists(st.integers(1, 4), max_size=3), ago_s=st.sampled_from([1.0, 10.0**6]))
def test_the_usual_reason_is_what_a_small_job_is_told_where_nothing_is_free(sizes: list[int], ago_s: float) -> None:
    nodes = [
        a_node(f"n{number}", size, free=(), struck_by=("ftjob-8", "ftjob-9"), struck_ago_s=ago_s)
        for number, size in enumerate(sizes)
    ]
    (wait,) = decide([a_job(1)], nodes).waits
    assert pure.usual_reason(nodes, 15.0) is wait.reason


def test_who_stands_behind_is_told_why_and_takes_no_slot() -> None:
    large, behind = a_job(1, num_slots=2), [a_job(2), a_job(3, strikes=3)]
    decision = pure.decide([large], [a_node("n")], max_strikes=3, retry_rest_s=15.0, behind=behind)
    assert decision.has_room, "so the cycle reads on"
    assert (decision.placements, decision.exhausted) == ((), ("ftjob-3",))
    assert [(wait.job_id, wait.position) for wait in decision.waits] == [("ftjob-1", 1), ("ftjob-2", None)]
    assert not decide([a_job(1)], [a_node("n")]).has_room


def test_a_job_never_spans_nodes_and_takes_the_tightest_gap() -> None:
    nodes = [a_node("big", 8), a_node("small", 2)]
    assert placed([a_job(1, num_slots=2)], nodes) == {"ftjob-1": ("small", (0, 1))}
    assert placed([a_job(1, num_slots=2)], [a_node("a"), a_node("b")]) == {}


def test_small_jobs_do_not_starve_a_large_one() -> None:
    jobs = [a_job(1, num_slots=2), a_job(2), a_job(3)]
    nodes = [a_node("a", 2, free=(1,)), a_node("b", 2, free=())]
    decision = decide(jobs, nodes)
    assert decision.placements == ()
    assert [wait.job_id for wait in decision.waits] == ["ftjob-1", "ftjob-2", "ftjob-3"]


def test_only_the_first_job_that_waits_keeps_a_node_and_small_jobs_use_the_others() -> None:
    jobs = [a_job(1, num_slots=4), a_job(2, num_slots=4), a_job(3)]
    nodes = [a_node("a", 4, free=(2, 3)), a_node("b", 4, free=(3,))]
    assert placed(jobs, nodes) == {"ftjob-3": ("b", (3,))}


def test_a_job_that_can_never_fit_holds_nobody_up() -> None:
    assert placed([a_job(1, num_slots=9), a_job(2)], [a_node("n")]) == {"ftjob-2": ("n", (0,))}


def test_three_strikes_end_a_job() -> None:
    decision = decide([a_job(1, strikes=3), a_job(2, strikes=2)], [a_node("n")])
    assert decision.exhausted == ("ftjob-1",)
    assert [p.job_id for p in decision.placements] == ["ftjob-2"]


def test_an_interrupted_placement_goes_on_with_the_slots_it_had_claimed() -> None:
    nodes = [a_node("a", 2), a_node("b", 2, free=(), claimed={("ftjob-1", 3): (1,), ("other", 1): (0,)})]
    assert placed([a_job(1, attempt=2)], nodes) == {"ftjob-1": ("b", (1,))}
    assert placed([a_job(1, attempt=3)], nodes) == {"ftjob-1": ("a", (0,))}


def test_a_job_that_failed_rests_twice_as_long_each_time_and_is_told_so() -> None:
    nodes = [a_node("n")]
    for strikes, rest_s in ((1, 30), (2, 60)):
        job = a_job(1, attempt=4, strikes=strikes, struck_ago_s=rest_s - 1)
        (wait,) = decide([job], nodes).waits
        assert wait.reason is Reason.RESTING
        assert wait.message == f"Attempt 4 failed; the job rests for {rest_s} s before attempt 5."
        assert placed([replace(job, struck_ago_s=rest_s)], nodes) == {"ftjob-1": ("n", (0,))}


def test_who_rests_holds_nobody_up() -> None:
    jobs = [a_job(1, strikes=1, struck_ago_s=1), a_job(2)]
    decision = decide(jobs, [a_node("n")])
    assert [p.job_id for p in decision.placements] == ["ftjob-2"]
    assert [(wait.job_id, wait.position) for wait in decision.waits] == [("ftjob-1", 1)]


def test_a_job_tries_another_node_than_the_one_where_it_failed() -> None:
    job = a_job(1, attempt=1, strikes=1, struck_ago_s=40, struck_on=frozenset({"a"}))
    assert placed([job], [a_node("a"), a_node("b", 8)]) == {"ftjob-1": ("b", (0,))}
    busy = decide([job, a_job(2)], [a_node("a"), a_node("b", free=())])
    assert busy.waits[0].reason is Reason.NO_FREE_SLOTS
    assert [(p.job_id, p.node_id) for p in busy.placements] == [("ftjob-2", "a")], "others may use it"


def test_a_job_does_not_wait_for_ever_for_another_node() -> None:
    job = a_job(1, attempt=1, strikes=1, struck_ago_s=40, struck_on=frozenset({"a"}))
    assert placed([job], [a_node("a")]) == {"ftjob-1": ("a", (0,))}
    assert placed([replace(job, num_slots=2)], [a_node("a", 2), a_node("b")]) == {"ftjob-1": ("a", (0, 1))}
    nodes = [a_node("a"), a_node("b", free=())]
    assert placed([job], nodes) == {}
    assert placed([replace(job, struck_ago_s=300)], nodes) == {"ftjob-1": ("a", (0,))}


def test_a_node_where_several_jobs_failed_in_a_row_rests() -> None:
    failing = a_node("a", 2, struck_by=("x", "y"), struck_ago_s=29)
    decision = decide([a_job(1)], [failing])
    assert decision.resting_nodes == {"a"}
    assert decision.waits[0].reason is Reason.NODES_REST
    assert placed([a_job(1)], [failing, a_node("b")]) == {"ftjob-1": ("b", (0,))}
    assert decide([a_job(1)], [failing, a_node("b", free=())]).waits[0].reason is Reason.NO_FREE_SLOTS
    assert placed([a_job(1)], [replace(failing, struck_ago_s=30)]) == {"ftjob-1": ("a", (0,))}
    assert placed([a_job(1)], [replace(failing, struck_by=("x", "y", "x"), struck_ago_s=59)]) == {}
    assert placed([a_job(1)], [replace(failing, struck_by=("x", "x"))]) == {"ftjob-1": ("a", (0,))}, "the job's fault"


def lost_jobs(nodes: Sequence[TrainerNode], *, num_jobs: int, repaired_at_s: int) -> int:
    """Every run on node `a` fails after 15 s until that is repaired; all others succeed after 100 s."""
    jobs = {f"ftjob-{number}": a_job(number) for number in range(num_jobs)}
    by_id, struck_at, broken_at = {node.id: node for node in nodes}, dict[str, int](), 0
    ends: dict[str, tuple[WaitingJob, int]] = {}
    for now_s in range(0, 7200, 15):
        for node_id, (job, ends_at_s) in list(ends.items()):
            if ends_at_s > now_s:
                continue
            del ends[node_id]
            node = replace(by_id[node_id], free=(0,))
            if node_id == "a" and now_s < repaired_at_s:
                on = job.struck_on | {"a"}
                jobs[job.id] = replace(job, attempt=job.attempt + 1, strikes=job.strikes + 1, struck_on=on)
                struck_at[job.id] = broken_at = now_s
                by_id[node_id] = replace(node, struck_by=(*node.struck_by, job.id))
            else:
                by_id[node_id] = replace(node, struck_by=())
        waiting = [
            replace(job, struck_ago_s=now_s - struck_at[job.id]) if job.strikes else job for job in jobs.values()
        ]
        seen = [replace(node, struck_ago_s=now_s - broken_at) for node in by_id.values()]
        for placement in decide(waiting, seen).placements:
            takes_s = 15 if placement.node_id == "a" and now_s < repaired_at_s else 100
            ends[placement.node_id] = (jobs.pop(placement.job_id), now_s + takes_s)
            by_id[placement.node_id] = replace(by_id[placement.node_id], free=())
    return len(jobs)


def test_a_broken_node_does_not_drain_the_queue() -> None:
    assert lost_jobs([a_node("a"), a_node("b")], num_jobs=20, repaired_at_s=7200) == 0
    assert lost_jobs([a_node("a")], num_jobs=20, repaired_at_s=3600) <= 3


@given(
    needs=st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2)), max_size=8),
    sizes=st.lists(st.integers(0, 4), max_size=4),
)
def test_no_slot_is_given_twice_and_every_job_has_an_answer(needs: list[tuple[int, int]], sizes: list[int]) -> None:
    jobs = [a_job(number, num_slots=need, priority=priority) for number, (need, priority) in enumerate(needs)]
    nodes = [a_node(f"n{number}", size) for number, size in enumerate(sizes)]
    decision = decide(jobs, nodes)
    given_slots = [(p.node_id, slot) for p in decision.placements for slot in p.slots]
    assert len(given_slots) == len(set(given_slots))
    wanted = {job.id: job.num_slots for job in jobs}
    assert all(len(p.slots) == wanted[p.job_id] for p in decision.placements)
    assert sorted([p.job_id for p in decision.placements] + [w.job_id for w in decision.waits]) == sorted(wanted)
    assert [wait.position for wait in decision.waits] == list(range(1, len(decision.waits) + 1))
