"""The four life tables: every phase can be reached and left, every fact has a place, no two rows contradict."""

from itertools import combinations

import pytest

from luthier_common.contract.asyncapi import sentence_of
from luthier_common.contract.events import DELETED, FACTS, RunFailed
from luthier_common.contract.events import Problem as Why
from luthier_common.contract.lifecycle import JOB, LIFECYCLES, NEW, Lifecycle, Row
from luthier_common.contract.topics import Kind

LIVES = pytest.mark.parametrize("life", LIFECYCLES.values(), ids=lambda life: life.kind)
ROOMS = {"api", "file-validator", "scheduler", "trainer", "registry", "inference"}


def exits(life: Lifecycle, phase: str) -> list[Row]:
    return [row for row in life.rows if phase in row.sources and row.target not in (None, phase)]


@LIVES
def test_every_live_phase_has_an_exit_and_a_final_one_only_a_restart_or_a_deletion(life: Lifecycle) -> None:
    for phase in life.phases:
        if phase.final:
            assert all(row.reopens or row.closes for row in life.rows if phase.name in row.sources), phase.name
        else:
            assert exits(life, phase.name), phase.name


@LIVES
def test_only_rows_that_leave_a_final_phase_reopen(life: Lifecycle) -> None:
    for row in life.rows:
        assert (row.reopens or row.closes) == any(life.is_final(source) for source in row.sources)


@LIVES
def test_what_closes_a_life_keeps_its_phase_and_lets_nothing_follow(life: Lifecycle) -> None:
    for row in (row for row in life.rows if row.closes):
        assert row.target is None
        assert all(life.is_final(source) for source in row.sources)
        closing, again = row.fact(), [other.fact for other in life.rows if other.reopens]
        assert closing.remembers() == {DELETED: True}
        assert life.moves([closing]) == {source: source for source in row.sources}
        assert [life.moves([closing, fact()]) for fact in (*again, row.fact)] == [{}] * (len(again) + 1)


@LIVES
def test_every_phase_can_be_reached(life: Lifecycle) -> None:
    reached, frontier = {NEW}, [NEW]
    while frontier:
        here = frontier.pop()
        nexts = {row.target for row in exits(life, here) if row.target} - reached
        reached |= nexts
        frontier.extend(nexts)
    assert reached == {NEW, *(phase.name for phase in life.phases)}


@LIVES
def test_rows_name_known_phases_and_rooms_and_facts_of_their_kind(life: Lifecycle) -> None:
    names = {NEW, *(phase.name for phase in life.phases)}
    for row in life.rows:
        assert {*row.sources, row.target or NEW} <= names
        assert set(row.room.split(", ")) <= ROOMS
        assert row.fact.kind is life.kind
        assert row.when.keys() <= row.fact.model_fields.keys()


@LIVES
def test_no_two_rows_are_meant_by_the_same_fact_in_the_same_phase(life: Lifecycle) -> None:
    for one, other in combinations(life.rows, 2):
        if one.fact is other.fact and set(one.sources) & set(other.sources):
            shared = one.when.keys() & other.when.keys()
            assert any(one.when[name] != other.when[name] for name in shared), (one, other)


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_has_a_row_and_a_sentence(name: str) -> None:
    fact = FACTS[name]
    assert any(row.fact is fact for row in LIFECYCLES[fact.kind].rows), f"{name} may be stated nowhere"
    assert sentence_of(fact), f"{name} has no docstring"


def test_a_job_has_the_seven_statuses() -> None:
    assert {phase.status for phase in JOB.phases} == {
        "validating_files",
        "queued",
        "running",
        "paused",
        "succeeded",
        "failed",
        "cancelled",
    }
    assert {phase.status for phase in JOB.phases if phase.final} == {"succeeded", "failed", "cancelled"}


def test_a_user_can_cancel_a_job_from_wherever_it_lives() -> None:
    (row,) = [row for row in JOB.rows if row.fact.__name__ == "JobCancelled"]
    assert set(row.sources) == {phase.name for phase in JOB.phases if not phase.final}


def test_a_user_can_delete_a_job_when_it_has_ended_and_not_before() -> None:
    (row,) = [row for row in JOB.rows if row.fact.__name__ == "JobDeleted"]
    assert row.closes
    assert set(row.sources) == {phase.name for phase in JOB.phases if phase.final}


def test_the_same_fact_leads_elsewhere_by_what_it_says() -> None:
    why = Why(code="run_crashed", message="crashed")
    assert JOB.moves([RunFailed(problem=why, retryable=True)])["training"] == "waiting"
    assert JOB.moves([RunFailed(problem=why, retryable=True)])["pausing"] == "paused"
    assert JOB.moves([RunFailed(problem=why, retryable=False)])["training"] == "failed"
    assert "waiting" not in JOB.moves([RunFailed(problem=why, retryable=False)])


def test_each_kind_has_one_life() -> None:
    assert set(LIFECYCLES) == set(Kind)
