"""What a claim on a node's slots calls for."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from luthier_common.contract import events as f
from luthier_common.contract.reasons import FailureReason
from luthier_trainer.domain import (
    Claim,
    NameHolder,
    NameWatch,
    Verdict,
    claims_of,
    failure_of,
    is_ours,
    judge,
    run_failed,
    tells_of_node,
    thin,
)
from luthier_trainer.inventory import find_slots, merge_slots, pick_visible
from luthier_trainer.protocol import Failed, Step

NOW = datetime(2026, 11, 1, tzinfo=UTC)
CLAIM = Claim("ftjob-1", 2, (0,), NOW - timedelta(seconds=5))
OLD = Claim("ftjob-1", 2, (0,), NOW - timedelta(seconds=60))


def make_job(**changes: Any) -> dict[str, Any]:
    job = {
        "phase": "placed", "attempt": 2, "wanted": "run", "lease": None,
        "members": [{"node": "n1", "slots": [0], "rank": 0}],
    }  # fmt: skip
    return {**job, **changes}


def lease_of(home: str, *, renewed_ago_s: float) -> dict[str, Any]:
    return {"owner": "n1", "home": home, "renewed_at": NOW - timedelta(seconds=renewed_ago_s)}


@pytest.mark.parametrize(
    ("claim", "job", "verdict"),
    [
        (CLAIM, make_job(), Verdict.START),
        (CLAIM, make_job(phase="pausing", wanted="pause"), Verdict.PAUSE),
        (CLAIM, make_job(phase="training", lease={"owner": "n1"}), Verdict.LOST),
        (CLAIM, make_job(phase="pausing", wanted="pause", lease={"owner": "n1"}), Verdict.LOST),
        (CLAIM, make_job(phase="training", lease=lease_of("home", renewed_ago_s=1)), Verdict.LOST),
        (CLAIM, make_job(phase="training", lease=lease_of("another", renewed_ago_s=29)), Verdict.WAIT),
        (replace(CLAIM, is_gone=True), make_job(lease=lease_of("another", renewed_ago_s=29)), Verdict.WAIT),
        (CLAIM, make_job(phase="training", lease=lease_of("another", renewed_ago_s=31)), Verdict.LOST),
        (CLAIM, make_job(phase="paused", lease=lease_of("another", renewed_ago_s=1)), Verdict.FREE),
        (CLAIM, make_job(phase="trained", lease={"owner": "n1"}), Verdict.FREE),
        (replace(CLAIM, is_gone=True), make_job(), Verdict.LOST),
        (CLAIM, make_job(phase="cancelled"), Verdict.FREE),
        (CLAIM, make_job(attempt=3), Verdict.FREE),
        (CLAIM, make_job(attempt=1, phase="waiting"), Verdict.WAIT),
        (OLD, make_job(attempt=1, phase="waiting"), Verdict.WITHDRAW),
        (OLD, make_job(attempt=3), Verdict.FREE),
        (CLAIM, None, Verdict.WAIT),
        (OLD, None, Verdict.WITHDRAW),
        (CLAIM, make_job(members=[{"node": "n2", "slots": [0]}]), Verdict.WAIT),
        (OLD, make_job(members=[{"node": "n1", "slots": [1]}]), Verdict.WITHDRAW),
    ],
)
def test_a_claim_calls_for(claim: Claim, job: dict[str, Any] | None, verdict: Verdict) -> None:
    assert judge(claim, job, "n1", NOW, 30.0, home="home") is verdict


def test_who_has_a_name_is_silent_when_a_whole_ttl_of_watching_found_nothing_new() -> None:
    died = NameHolder("a1", NOW)
    watch = NameWatch(ttl_s=30.0)
    looks_s = (0.0, 10.0, 20.0, 29.0, 30.0)
    assert [watch.is_silent(died, now_s) for now_s in looks_s] == [False, False, False, False, True]


def test_who_has_a_name_has_a_whole_ttl_again_after_an_outage_of_the_database() -> None:
    waits_too = NameHolder("a1", NOW)
    watch = NameWatch(ttl_s=30.0)
    assert not watch.is_silent(waits_too, 0.0)
    assert [watch.is_silent(waits_too, now_s) for now_s in (100.0, 110.0, 120.0, 130.0)] == [False, False, False, True]


def test_who_has_a_name_lives_when_anything_about_it_is_new() -> None:
    """A document is there a moment before its first renewal."""
    watch = NameWatch(ttl_s=30.0)
    assert not watch.has_changed(NameHolder("a1", None))
    assert not watch.is_silent(NameHolder("a1", None), 0.0)
    assert not watch.has_changed(NameHolder("a1", None))
    assert watch.has_changed(NameHolder("a1", NOW))


def test_only_a_placed_attempt_on_these_slots_is_ours() -> None:
    assert is_ours(CLAIM, make_job(phase="training"), "n1")
    assert not is_ours(CLAIM, make_job(phase="training"), "n2")
    assert not is_ours(CLAIM, make_job(attempt=3), "n1")
    assert not is_ours(CLAIM, make_job(phase="cancelled"), "n1")


def test_slots_of_one_attempt_are_one_claim() -> None:
    held = {"job": "ftjob-1", "attempt": 2, "claim": "c", "claimed_at": NOW}
    slots = [{"index": 0, "holder": held}, {"index": 1, "holder": None}, {"index": 2, "holder": held}]
    assert claims_of(slots) == [Claim("ftjob-1", 2, (0, 2), NOW, "c")]


def test_a_claim_names_its_slots_in_the_order_of_the_job_that_was_placed() -> None:
    """The node lists its GPUs as `CUDA_VISIBLE_DEVICES` does: here 2 before 0."""
    held = {"job": "ftjob-1", "attempt": 2, "claim": "c", "claimed_at": NOW}
    (claim,) = claims_of([{"index": 2, "holder": held}, {"index": 0, "holder": held}])
    job = make_job(members=[{"node": "n1", "slots": [0, 2], "rank": 0}])
    assert judge(claim, job, "n1", NOW, 30.0, home="home") is Verdict.START


def test_what_another_scheduler_claimed_for_the_same_attempt_keeps_no_run_from_starting() -> None:
    placed, stray = ({"job": "ftjob-1", "attempt": 2, "claim": name, "claimed_at": NOW} for name in "ps")
    claims = claims_of([{"index": 0, "holder": placed}, {"index": 1, "holder": stray}])
    verdicts = [judge(claim, make_job(), "n1", NOW + timedelta(seconds=60), 30.0, home="home") for claim in claims]
    assert verdicts == [Verdict.START, Verdict.WITHDRAW]


def test_a_node_that_is_to_have_gpus_never_offers_its_cpu() -> None:
    """True on any machine: the tests' own may have a GPU or none."""
    try:
        _, slots = find_slots("cuda", num_cpu_slots=4)
    except RuntimeError as error:
        refusal = str(error)
        assert refusal == "LUTHIER_TRAINER_DEVICE is cuda, but NVML sees no GPU"
    else:
        assert all(slot["gpu"]["uuid"].startswith("GPU-") for slot in slots)
    with pytest.raises(RuntimeError, match="that CUDA_VISIBLE_DEVICES names"):
        find_slots("cuda", num_cpu_slots=4, visible="")


GPUS = [
    {"name": "H100", "memory_bytes": 80 << 30, "uuid": f"GPU-{start}a1b2-44f1"} for start in ("aa", "ab", "bc", "cd")
]


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("2,3", [2, 3]),
        (" 1 , 0", [1, 0]),
        ("GPU-bca1b2-44f1", [2]),
        ("GPU-cd,GPU-aa", [3, 0]),
        ("GPU-a", []),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("0,4,1", [0]),
        ("1,void,2", [1]),
        ("1,1", []),
        ("MIG-aa", []),
    ],
)
def test_only_the_gpus_that_cuda_would_show_are_offered(variable: str | None, indices: list[int]) -> None:
    assert pick_visible(GPUS, variable) == [(index, GPUS[index]) for index in indices]


def test_joining_again_keeps_what_is_held() -> None:
    held = {"job": "ftjob-1", "attempt": 2}
    known = [{"index": 0, "gpu": None, "holder": None}, {"index": 1, "gpu": None, "holder": held}]
    fresh = [{"index": 0, "gpu": None, "holder": None}]
    with_gone = [fresh[0], {**known[1], "gone": True}]
    assert merge_slots(fresh, known) == with_gone
    assert merge_slots([*fresh, {"index": 1, "gpu": None, "holder": None}], with_gone) == known


def test_a_slot_keeps_its_number_when_others_are_withdrawn() -> None:
    """A node of four GPUs starts again with two of them, while a run of before still holds one that it lost."""
    held = {"job": "ftjob-1", "attempt": 2}
    known = [
        {"index": index, "gpu": gpu, "holder": held if index in (0, 3) else None} for index, gpu in enumerate(GPUS)
    ]
    fresh = [{"index": index, "gpu": GPUS[index], "holder": None} for index in (2, 3)]
    merged = merge_slots(fresh, known)
    assert [(slot["index"], slot["holder"], slot.get("gone", False)) for slot in merged] == [
        (2, None, False),
        (3, held, False),
        (0, held, True),
    ]
    assert [claim.is_gone for claim in claims_of(merged)] == [True]


def test_whose_fault_it_is_says_whether_it_is_tried_again() -> None:
    assert run_failed(FailureReason.STORAGE).retryable
    assert not run_failed(FailureReason.NOTHING_TO_LEARN).retryable
    told = failure_of(Failed(reason="row_too_long", message="line 3", retryable=False))
    assert (told.problem.code, told.problem.message, told.retryable) == ("row_too_long", "line 3", False)
    assert failure_of(Failed(reason="from_the_future", message="", retryable=True)).problem.code == "internal_error"


def test_a_run_tells_of_its_node_whether_it_works() -> None:
    crashed = run_failed(FailureReason.RUN_CRASHED)
    assert tells_of_node(crashed, has_saved=False) is False
    assert tells_of_node(crashed, has_saved=True) is True
    assert tells_of_node(run_failed(FailureReason.NOTHING_TO_LEARN), has_saved=False) is None
    assert tells_of_node(crashed.model_copy(update={"preempted": True}), has_saved=False) is None
    assert tells_of_node(f.RunPaused(step=None), has_saved=False) is None
    assert tells_of_node(None, has_saved=False) is None


def test_thinning_keeps_the_last_step() -> None:
    steps = [
        Step(
            step=number, loss=1, mean_token_accuracy=0, learning_rate=0, grad_norm=None, trained_tokens=0, epoch=0,
            step_time_s=1, tokens_per_s=1,
        )
        for number in range(1, 6)
    ]  # fmt: skip
    assert [step.step for step in thin(steps)] == [1, 3, 5]
    assert [step.step for step in thin(steps[:4])] == [2, 4]
