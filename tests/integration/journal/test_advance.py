"""A thing moves by one compare-and-set: what is legal is applied once, all else is told apart."""

import asyncio
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from builders.jobs import ACTOR, OWNED, JobStory, make_blob, make_spec, make_step
from luthier_common.contract import events as f
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import MAX_OUTBOX, MAX_OUTBOX_BULK, Outcome, advance, create
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Collection, Database


async def test_a_created_job_waits_for_its_files_and_has_one_fact_in_its_outbox(db: Database) -> None:
    story = await JobStory.created(db)
    doc = await story.doc()
    assert (doc["status"], doc["phase"], doc["seq"], doc["generation"]) == ("validating_files", "checking", 1, 1)
    assert [entry["type"] for entry in doc["outbox"]] == ["JobCreated"]
    assert doc["outbox"][0]["seq"] == 1
    assert doc["unsent"]
    assert doc["created_at"] == doc["updated_at"]


async def test_creating_the_same_id_twice_at_once_makes_one_job(db: Database) -> None:
    document = {**OWNED, "spec": {}, "last_step": 0}
    fact = f.JobCreated(spec=make_spec())
    done = await asyncio.gather(*(create(db, fact, "ftjob-same", document, actor=ACTOR) for _ in range(8)))
    assert sorted(one.outcome for one in done) == ["applied"] + ["duplicate"] * 7
    doc = await db["jobs"].find_one({"_id": "ftjob-same"})
    assert doc is not None
    assert doc["seq"] == 1


async def test_user_text_that_looks_like_an_expression_stays_text(db: Database) -> None:
    story = await JobStory.created(db, metadata={"note": "$seq", "k": "$$ROOT"}, spec=make_spec(suffix="$status"))
    doc = await story.doc()
    assert doc["metadata"] == {"note": "$seq", "k": "$$ROOT"}
    assert doc["outbox"][0]["data"]["spec"]["suffix"] == "$status"


async def test_a_repeated_command_is_a_duplicate_and_changes_nothing(db: Database) -> None:
    story = await JobStory.created(db)
    assert (await story.tell(f.JobCancelled(), op_id="cancel-1")).applied
    again = await story.tell(f.JobCancelled(), op_id="cancel-1")
    assert again.outcome is Outcome.DUPLICATE
    assert (await story.doc())["seq"] == 2


async def test_nothing_follows_a_final_status(db: Database) -> None:
    story = await JobStory.created(db)
    await story.tell(f.JobCancelled(), op_id="1")
    late = await story.tell(f.DataAccepted(num_examples=1, num_tokens=1), op_id="2")
    assert late.outcome is Outcome.ILLEGAL
    doc = await story.doc()
    assert doc["finished_at"] is not None
    assert doc["outbox"][-1]["terminal"] is True
    assert [entry["terminal"] for entry in doc["outbox"][:-1]] == [False]


async def test_a_fact_of_an_older_attempt_is_stale(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    assert (await story.tell(f.RunLost(reason="lease_expired"), attempt=1, op_id="1/lost")).applied
    await story.placed(attempt=2)
    await story.started(attempt=2)
    zombie = await story.tell(make_step(1), attempt=1)
    assert zombie.outcome is Outcome.STALE
    assert (await story.doc())["last_step"] == 0


async def test_steps_told_again_after_a_resume_are_refused_before_they_get_a_seq(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    assert (await story.tell(make_step(1), make_step(2), attempt=1)).applied
    seq = (await story.doc())["seq"]
    assert (await story.tell(make_step(1), make_step(2), attempt=1)).outcome is Outcome.DUPLICATE
    assert (await story.tell(make_step(3), attempt=1)).applied
    doc = await story.doc()
    assert (doc["seq"], doc["last_step"]) == (seq + 1, 3)


async def test_a_batch_may_end_in_a_move_and_is_all_or_nothing(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    saved = f.CheckpointSaved(step=3, attempt=1, blob=make_blob())
    lost = f.RunLost(reason="lease_expired", last_step=3)
    done = await story.tell(make_step(3), saved, lost, attempt=1, op_id="1/lost")
    assert done.applied
    doc = await story.doc()
    assert doc["phase"] == "waiting"
    assert doc["checkpoint"]["step"] == 3
    assert doc["strikes"] == 1
    seqs = [entry["seq"] for entry in doc["outbox"]]
    assert seqs == list(range(1, doc["seq"] + 1))


async def test_a_lost_run_of_a_pausing_job_is_paused(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    assert (await story.tell(f.PauseRequested(), op_id="p")).applied
    assert (await story.doc())["status"] == "running"
    assert (await story.tell(f.RunLost(reason="lease_expired"), attempt=1, op_id="l")).applied
    assert (await story.doc())["status"] == "paused"


async def test_a_lease_that_was_renewed_since_it_was_seen_keeps_the_run(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    await db["jobs"].update_one({"_id": story.id}, [{"$set": {"lease": {"owner": "node-1", "renewed_at": "$$NOW"}}}])
    refused = await story.tell(f.RunLost(reason="lease_expired"), attempt=1, op_id="l", match={"lease": None})
    assert refused.outcome is Outcome.CHANGED
    assert (await story.doc())["phase"] == "training"


async def test_while_the_broker_is_away_steps_are_refused_and_lifecycle_facts_still_fit(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    step = 0
    while (done := await story.tell(*(make_step(step + n) for n in range(1, 51)), attempt=1)).applied:
        step += 50
    assert done.outcome is Outcome.FULL
    assert len((await story.doc())["outbox"]) <= MAX_OUTBOX_BULK
    assert (await story.tell(f.JobCancelled(), op_id="c")).applied
    assert len((await story.doc())["outbox"]) <= MAX_OUTBOX


async def test_an_unknown_job_is_illegal(db: Database) -> None:
    done = await advance(db, Kind.JOB, "ftjob-none", f.JobCancelled(), actor=ACTOR, op_id="x")
    assert (done.outcome, done.doc) == (Outcome.ILLEGAL, None)


async def test_a_restart_raises_the_generation_and_the_job_may_end_again(db: Database) -> None:
    story = await JobStory.created(db)
    await story.tell(f.JobCancelled(), op_id="c1")
    assert (await story.tell(f.JobRestarted(), op_id="r1")).applied
    doc = await story.doc()
    assert (doc["generation"], doc["status"], doc["finished_at"]) == (2, "validating_files", None)
    assert doc["outbox"][-1]["generation"] == 2
    assert (await story.tell(f.JobCancelled(), op_id="c2")).applied


async def test_after_a_deletion_nothing_is_stated_and_the_end_stays_as_it_was(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    assert (await story.tell(f.JobDeleted(), op_id="d0")).outcome is Outcome.ILLEGAL
    await story.tell(f.JobCancelled(), op_id="c")
    ended = await story.doc()
    assert (await story.tell(f.JobDeleted(), op_id="d1")).applied
    assert (await story.tell(f.JobDeleted(), op_id="d1")).outcome is Outcome.DUPLICATE
    for fact in (f.JobDeleted(), f.JobRestarted(), f.JobCancelled()):
        assert (await story.tell(fact, op_id=f"again/{fact.type}")).outcome is Outcome.ILLEGAL
    doc = await story.doc()
    same = ("phase", "status", "generation", "attempt", "finished_at")
    assert {name: doc[name] for name in same} == {name: ended[name] for name in same}
    assert [entry["type"] for entry in doc["outbox"] if entry["terminal"]] == ["JobCancelled"]
    assert doc["outbox"][-1]["type"] == "JobDeleted"


async def test_cancel_races_with_finish_and_one_of_them_wins(db: Database) -> None:
    for number in range(20):
        story = await (await JobStory.created(db)).in_training()
        failed = f.RunFailed(problem=f.Problem(code="out_of_memory", message="m"), retryable=False)
        told = await asyncio.gather(
            story.tell(f.JobCancelled(), op_id="c"), story.tell(failed, attempt=1, op_id="1/RunFailed")
        )
        assert sorted(one.outcome for one in told) == ["applied", "illegal"], number
        assert sum(entry["terminal"] for entry in (await story.doc())["outbox"]) == 1


@pytest.mark.parametrize("phase", ["placed", "training"])
async def test_a_retryable_failure_goes_back_to_the_queue(db: Database, phase: str) -> None:
    story = await (await JobStory.created(db)).accepted()
    await story.placed()
    if phase == "training":
        await story.started()
    fact = f.RunFailed(problem=f.Problem(code="storage", message="disk", retryable=True), retryable=True)
    assert (await story.tell(fact, attempt=1, op_id="1/RunFailed")).applied
    doc = await story.doc()
    assert (doc["phase"], doc["strikes"], doc.get("error")) == ("waiting", 1, None)


async def test_a_fact_that_is_too_large_is_refused_where_it_is_made(db: Database) -> None:
    story = await JobStory.created(db)
    problem = f.Problem(code="internal_error", message="x" * 70_000)
    with pytest.raises(ValueError, match="larger than a fact may be"):
        await story.tell(f.DataRejected(problem=problem))
    assert (await story.doc())["seq"] == 1


async def test_a_node_that_stops_in_order_costs_the_job_no_strike(db: Database) -> None:
    story = await (await JobStory.created(db)).in_training()
    problem = f.Problem(code="node_restarted", message="stopped", retryable=True)
    fact = f.RunFailed(problem=problem, retryable=True, preempted=True)
    assert (await story.tell(fact, attempt=1, op_id="1/RunFailed")).applied
    doc = await story.doc()
    assert (doc["phase"], doc["strikes"]) == ("waiting", 0)


async def test_writes_that_fail_while_reads_answer_are_an_outage_and_no_answer(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary without a majority: whoever took this for a refusal would kill a healthy run."""
    story = await (await JobStory.created(db)).in_training()

    async def no_majority(*_args: Any, **_more: Any) -> None:
        raise AutoReconnect("no primary")

    monkeypatch.setattr(Collection, "find_one_and_update", no_majority)
    with pytest.raises(TransientError):
        await story.tell(make_step(1), attempt=1)
    monkeypatch.undo()
    assert (await story.tell(make_step(1), attempt=1)).applied


async def test_each_strike_is_kept_with_its_time_and_nodes(db: Database) -> None:
    story = await (await JobStory.created(db)).accepted()
    for attempt in (1, 2):
        await story.placed(attempt, node=f"node-{attempt}")
        await story.tell(f.RunLost(reason="lease_expired"), attempt=attempt, op_id=f"{attempt}/lost")
    doc = await story.doc()
    assert [strike["nodes"] for strike in doc["struck"]] == [["node-1"], ["node-2"]]
    assert doc["struck"][0]["at"] < doc["struck"][1]["at"] == doc["updated_at"]
