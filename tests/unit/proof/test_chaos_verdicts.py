"""What a chaos run says of itself is believed because it is checked: sound values pass, each breakage is named."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.fine_tuning import FineTuningJob

from builders import racing_users
from builders.racing_users import Race
from chaos.plan import BROKER, MONGOD, SERVICES, TRAINERS, Fault, Kind, counted, make_plan
from chaos.report import BACKLOG_LIMIT_S, DONE_SHARE, LONG_S, RECOVERY_LIMIT_S, Report, alarms_in, unproven
from chaos.saboteur import Done
from chaos.users import Users, broken_promises
from chaos.watch import Recovery, Sample, recoveries

PLAN = make_plan(1, 1800)
NUM_LONG_STOPS = sum(fault.kind is Kind.LONG_STOP and fault.victim in TRAINERS for fault in PLAN)
KILL = Fault(1.0, Kind.KILL, MONGOD)
STOP = Fault(2.0, Kind.LONG_STOP, "trainer", 6.0)
SOUND = Report(
    seed=1,
    seconds=1800,
    done=counted(PLAN),
    missed={},
    jobs={"succeeded": 200, "cancelled": 20},
    num_runs_lost=NUM_LONG_STOPS,
    num_jobs_moved=10,
    answers={"create": 220},
    recoveries=[Recovery(KILL, 4.0), Recovery(STOP, 9.5)],
    backlog_s=3.0,
    settled_s=20.0,
    findings=[],
)
JOB = "ftjob-1"


def done_so_often(kind: Kind, victims: Sequence[str], number: int) -> dict[tuple[Kind, str], int]:
    """All that was planned, and one thing to the first of these so often."""
    others = {key: times for key, times in counted(PLAN).items() if key[0] is not kind or key[1] not in victims}
    return others | {(kind, victims[0]): number}


def done_but_for(kind: Kind, share: float) -> dict[tuple[Kind, str], int]:
    """All that was planned, and so much of one kind: of one victim, since only the kind is counted."""
    others = {key: number for key, number in counted(PLAN).items() if key[0] is not kind}
    return others | {(kind, "any"): int(share * sum(fault.kind is kind for fault in PLAN))}


def test_a_sound_run_is_passed() -> None:
    assert unproven(SOUND, PLAN) == []
    at_the_limits = replace(SOUND, backlog_s=BACKLOG_LIMIT_S, num_runs_lost=NUM_LONG_STOPS // 2, num_jobs_moved=1)
    assert unproven(replace(at_the_limits, recoveries=[Recovery(KILL, RECOVERY_LIMIT_S)]), PLAN) == []
    for kind, victims, least in ((Kind.KILL, SERVICES, 300), (Kind.KILL, (MONGOD,), 30), (Kind.LOSE, (BROKER,), 10)):
        assert unproven(replace(SOUND, done=done_so_often(kind, victims, least)), PLAN) == []
    assert unproven(replace(SOUND, recoveries=[]), PLAN) == []


def test_a_short_run_need_not_show_that_runs_are_lost_and_move() -> None:
    plan = make_plan(1, 60)
    assert any(fault.kind is Kind.LONG_STOP for fault in plan)
    short = replace(SOUND, seconds=60, done=counted(plan), num_runs_lost=0, num_jobs_moved=0)
    assert unproven(short, plan) == []
    assert unproven(replace(short, seconds=LONG_S), plan) == ["no job went on at another trainer"]


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"backlog_s": BACKLOG_LIMIT_S + 0.1}, "I11 facts still waited 30.1 s"),
        ({"jobs": {"cancelled": 20}}, "no job succeeded"),
        ({"jobs": {}}, "no job succeeded"),
        ({"num_runs_lost": NUM_LONG_STOPS // 2 - 1}, f"{NUM_LONG_STOPS} long stops of trainers made"),
        ({"num_jobs_moved": 0}, "no job went on at another trainer"),
        ({"recoveries": [Recovery(STOP, 9.5), Recovery(KILL, None)]}, f"nothing went on after {str(KILL).strip()}"),
        (
            {"recoveries": [Recovery(STOP, RECOVERY_LIMIT_S + 0.1)]},
            f"nothing went on after {str(STOP).strip()}: 60.1 s",
        ),
        ({"done": done_so_often(Kind.KILL, SERVICES, 299)}, "only 299 of 300 faults of services"),
        ({"done": done_so_often(Kind.KILL, (MONGOD,), 29)}, f"only 29 of 30 faults of {MONGOD}"),
        ({"done": done_so_often(Kind.LOSE, (BROKER,), 9)}, f"only 9 of 10 faults of {BROKER}"),
    ],
)
def test_each_promise_that_a_run_breaks_is_one_finding(changes: dict[str, Any], finding: str) -> None:
    [found] = unproven(replace(SOUND, **changes), PLAN)
    assert found.startswith(finding)


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_of_fault_that_mostly_did_not_happen_is_a_finding(kind: Kind) -> None:
    few = unproven(replace(SOUND, done=done_but_for(kind, DONE_SHARE - 0.1)), PLAN)
    assert [one for one in few if one.endswith(f"faults of the kind {kind!r} happened")]
    enough = unproven(replace(SOUND, done=done_but_for(kind, DONE_SHARE + 0.1)), PLAN)
    assert not [one for one in enough if "of the kind" in one]


def test_what_was_felt_to_the_end_was_felt_longest() -> None:
    assert replace(SOUND, recoveries=[]).longest is None
    assert SOUND.longest == Recovery(STOP, 9.5)
    endless = Recovery(KILL, None)
    assert replace(SOUND, recoveries=[*SOUND.recoveries, endless, Recovery(STOP, 1e6)]).longest == endless


@pytest.mark.parametrize(
    ("name", "line", "is_alarm"),
    [
        ("api.log", '{"level": "error", "message": "alarm: hole facts of job x: [3]"}', True),
        ("api.log.1", '{"level": "error", "message": "alarm: a second terminal fact was refused"}', True),
        ("api.log", '{"level": "error", "message": "alarm: late facts of job x: [3]"}', False),
        ("api.log", '{"level": "error", "message": "no alarm: only a word"}', False),
        ("api.log", "", False),
        ("api.txt", '{"level": "error", "message": "alarm: hole facts of job x: [3]"}', False),
    ],
)
def test_alarms_are_found_in_every_log_but_for_what_is_only_late(
    tmp_path: Path, name: str, line: str, is_alarm: bool
) -> None:
    (tmp_path / name).write_text(f'{{"level": "info", "message": "well"}}\n{line}\n')
    assert alarms_in(tmp_path) == ([f"alarm in {name}: {line}"] if is_alarm else [])


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        ([(9.5, True, 3), (10.5, True, 4)], 0.5),
        ([(9.5, True, 3), (10.5, False, 4), (11.5, True, 4)], 1.5),
        ([(9.5, True, 3), (10.5, True, 3), (13.0, True, 4)], 3.0),
        ([(8.0, True, 2), (9.5, True, 3), (10.5, True, 3)], None),
        ([(9.5, True, 3), (10.0, True, 4), (10.5, True, 4), (11.0, True, 5)], 1.0),
        ([(9.5, True, 3), (10.5, False, 4), (11.5, False, 5)], None),
        ([(10.5, True, 0), (11.0, True, 1)], 1.0),
        ([], None),
    ],
    ids=[
        "the next look shows both",
        "progress before readiness",
        "readiness before progress",
        "progress before the fault only",
        "what is seen at its moment was before it",
        "never ready again",
        "nobody looked before",
        "nobody looked at all",
    ],
)
def test_a_fault_is_felt_until_a_look_shows_readiness_and_new_progress(
    samples: Sequence[tuple[float, bool, int]], seconds: float | None
) -> None:
    assert recoveries([Done(KILL, 10.0, 10.1)], [Sample(*one) for one in samples]) == [Recovery(KILL, seconds)]


def test_each_fault_is_measured_from_its_own_beginning() -> None:
    samples = [Sample(0.5, True, 1), Sample(3.0, True, 2), Sample(6.0, False, 3)]
    done = [Done(KILL, 1.0, 1.0), Done(STOP, 4.0, 10.0)]
    assert recoveries(done, samples) == [Recovery(KILL, 2.0), Recovery(STOP, None)]


class Collection:
    """Documents in memory, all of which every query finds."""

    def __init__(self, docs: Sequence[dict[str, Any]]) -> None:
        self._docs = docs

    async def find(self, *_query: object) -> AsyncIterator[dict[str, Any]]:
        for doc in self._docs:
            yield doc


async def promises_broken(users: Users, told: Sequence[str], status: str | None, told_of: str = JOB) -> list[str]:
    events = [{"thing": told_of, "type": each} for each in told]
    jobs = [{"_id": JOB, "status": status}] if status else []
    db: Any = {"events": Collection(events), "jobs": Collection(jobs)}
    return await broken_promises(db, users)


@pytest.fixture
def users() -> Users:
    """They have not called anybody."""
    client = AsyncOpenAI(base_url="http://127.0.0.1:1", api_key="none")
    made = Users(client, Path("rows.jsonl"), seed=1, count=1, slowness=1.0)
    seen: dict[str, Any] = {"id": JOB, "status": "cancelled"}
    made.ended[JOB] = FineTuningJob.model_construct(**seen)
    return made


TRACES = [
    ("pause", "PauseRequested"),
    ("pause", "JobPaused"),
    ("resume", "JobResumed"),
    ("cancel", "JobCancelled"),
    ("delete", "JobDeleted"),
]


@pytest.mark.parametrize(("verb", "fact"), TRACES)
async def test_an_acknowledged_command_must_be_a_fact_of_its_job(users: Users, verb: str, fact: str) -> None:
    users.said[JOB].add(verb)
    assert await promises_broken(users, ["JobCreated", fact], "cancelled") == []
    others = [each for of, each in TRACES if of != verb]
    lost = [f"I1 job {JOB}: its {verb} was acknowledged and is no fact"]
    assert await promises_broken(users, others, "cancelled") == lost
    assert await promises_broken(users, [fact], "cancelled", told_of="ftjob-2") == lost


@pytest.mark.parametrize("now", ["succeeded", "running", None])
async def test_an_end_that_a_user_saw_must_stay(users: Users, now: str | None) -> None:
    assert await promises_broken(users, [], now) == [f"I3 job {JOB}: a user saw it cancelled, now it is {now}"]


async def test_what_users_found_themselves_is_kept(users: Users) -> None:
    users.findings.append("I1 user 3 gave up")
    assert await promises_broken(users, [], "cancelled") == ["I1 user 3 gave up"]


Answers = Sequence[tuple[str, str]]


def broken_in_race(answers: Answers, status: str, told: Sequence[str]) -> Counter[str]:
    """The claims that do not hold."""
    race = Race(7, 1, (), job_id=JOB, answers=list(answers))
    found = racing_users.broken_promises(race, {"status": status}, told)
    return Counter(one.split(": not so: ")[1].split(";")[0] for one in found)


@pytest.mark.parametrize(
    ("answers", "status", "told"),
    [
        ([], "succeeded", ["JobCreated"]),
        ([("cancel", "cancelled")], "cancelled", ["JobCancelled"]),
        ([("cancel", "cancelled"), ("cancel", "cancelled")], "cancelled", ["JobCancelled"]),
        ([("cancel", "invalid_state")], "succeeded", []),
        ([("pause", "invalid_state"), ("resume", "invalid_state")], "succeeded", []),
        ([("pause", "paused"), ("resume", "queued")], "succeeded", ["JobPaused", "JobResumed"]),
        ([("pause", "running"), ("resume", "running")], "succeeded", ["PauseRequested", "JobResumed"]),
        ([("pause", "running")] * 2, "succeeded", ["PauseRequested"]),
        ([("pause", "paused"), ("cancel", "cancelled")], "cancelled", ["JobPaused", "JobCancelled"]),
    ],
)  # fmt: skip
def test_a_race_in_which_all_was_kept_is_passed(answers: Answers, status: str, told: Sequence[str]) -> None:
    assert not broken_in_race(answers, status, told)


@pytest.mark.parametrize(
    ("answers", "status", "told", "claim"),
    [
        ([("cancel", "unavailable")], "cancelled", ["JobCancelled"], "nothing is refused but for the job's state"),
        ([("cancel", "cancelled")], "succeeded", ["JobCancelled"], "an acknowledged cancel ends cancelled"),
        ([("cancel", "invalid_state")], "cancelled", [], "an acknowledged cancel ends cancelled"),
        ([("cancel", "cancelled")], "cancelled", [], "however often it was cancelled"),
        ([("cancel", "cancelled")] * 2, "cancelled", ["JobCancelled"] * 2, "however often it was cancelled"),
        ([], "failed", [], "no job fails of a race"),
        ([("resume", "queued")], "succeeded", [], "each acknowledged resume is one fact"),
        ([("resume", "invalid_state")], "succeeded", ["JobResumed"], "each acknowledged resume is one fact"),
        ([("pause", "paused")], "succeeded", [], "an acknowledged pause was told"),
        ([("pause", "invalid_state")], "succeeded", ["JobPaused"], "no pause is told that was not acknowledged"),
        ([("pause", "paused")], "succeeded", ["PauseRequested", "JobPaused"], "no pause is told that was not"),
        ([], "paused", [], "a job that was not cancelled succeeds"),
    ],
)
def test_each_promise_that_a_race_breaks_is_named(
    answers: Answers, status: str, told: Sequence[str], claim: str
) -> None:
    found = broken_in_race(answers, status, told)
    assert [one for one in found if one.startswith(claim)], found
