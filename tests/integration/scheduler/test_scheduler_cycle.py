"""What becomes of waiting and running jobs, as their documents and events show it."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.errors import ConnectionFailure

from builders.jobs import JobStory, make_blob, make_spec
from luthier_common.contract import events as f
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.mongo import Database, Doc
from luthier_scheduler.cycle import HEAD, MAX_REASONS, Cycle
from luthier_scheduler.leader import LEASE, Leader

MakeCycle = Callable[..., Cycle]
Join = Callable[..., Any]


async def pass_ttl(cycle: Cycle, clock: Any, *, seconds: float = 3.0) -> None:
    """Look as often as a scheduler would until a TTL is over."""
    await cycle.run()
    for _ in range(int(seconds)):
        clock.now_s += 1.0
        await cycle.run()


async def holders(db: Database) -> list[Doc]:
    return [slot["holder"] async for node in db["nodes"].find() for slot in node["slots"] if slot["holder"]]


async def free_all(db: Database) -> None:
    """What supervisors do when their children are gone."""
    await db["nodes"].update_many({}, {"$set": {"slots.$[].holder": None}})


async def revive_node(db: Database) -> None:
    """The node is heard again; its renewal is another value than before."""
    await db["nodes"].update_one({"_id": "node-1"}, {"$set": {"phase": "live"}, "$currentDate": {"renewed_at": True}})
    await asyncio.sleep(0.002)


async def checkpoint_at(job: JobStory, step: int, attempt: int) -> None:
    saved = f.CheckpointSaved(step=step, attempt=attempt, blob=make_blob())
    assert (await job.tell(saved, attempt=attempt)).applied


async def renew_run(db: Database, job: JobStory) -> None:
    renewed: list[Doc] = [{"$set": {"lease": {"owner": "node-1", "renewed_at": "$$NOW"}}}]
    await db["jobs"].update_one({"_id": job.id}, renewed)
    await asyncio.sleep(0.002)  # the database's clock counts milliseconds


async def test_a_job_is_placed_with_everything_pinned(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    await join("node-1", 2)
    job = await (await JobStory.created(db)).accepted(num_examples=200)
    await make_cycle().run()
    doc = await job.doc()
    assert (doc["phase"], doc["attempt"], doc["status"]) == ("placed", 1, "queued")
    assert doc["members"] == [{"node": "node-1", "slots": [0], "rank": 0}]
    assert doc["base_digest"] == "d" * 64
    assert (doc["resolved"]["n_epochs"], doc["resolved"]["total_steps"], doc["resolved"]["context_length"]) == (
        3,
        600,
        256,
    )
    (holder,) = await holders(db)
    assert (holder["job"], holder["attempt"]) == (job.id, 1)
    assert holder["claimed_at"] is not None


async def test_who_waits_is_told_why_and_where_in_the_queue(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    jobs = [await (await JobStory.created(db)).accepted() for _ in range(3)]
    cycle = make_cycle()
    await cycle.run()
    assert [(await job.doc())["queue"]["reason"] for job in jobs] == ["no_nodes"] * 3
    await join("node-1")
    await cycle.run()
    clock.now_s += 1
    await cycle.run()
    first, second, third = [await job.doc() for job in jobs]
    assert first["phase"] == "placed"
    assert first["queue"] is None
    assert (second["queue"]["position"], second["queue"]["num_ahead"]) == (1, 0)
    assert (third["queue"]["position"], third["queue"]["num_ahead"]) == (2, 1)
    assert third["queue"]["reason"] == "no_free_slots"
    seq = third["seq"]
    clock.now_s += 1
    await cycle.run()
    assert (await jobs[2].doc())["seq"] == seq, "an unchanged reason is no fact"


async def many_more(db: Database, job: JobStory, number: int) -> None:
    """So many jobs like this one, which wait behind it."""
    doc = await job.doc() | {"outbox": [], "unsent": False, "pend": False}
    later = [doc["created_at"] + timedelta(milliseconds=1 + count) for count in range(number)]
    await db["jobs"].insert_many(
        [doc | {"_id": f"{job.id}-{count:05d}", "created_at": created_at} for count, created_at in enumerate(later)]
    )


async def test_of_a_long_queue_everybody_is_told_why_and_the_first_where(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    job = await (await JobStory.created(db)).accepted()
    await many_more(db, job, HEAD + MAX_REASONS)
    cycle = make_cycle()
    for _ in range(HEAD // MAX_REASONS + 2):
        clock.now_s += 1
        await cycle.run()
    assert await db["jobs"].count_documents({"queue.reason": "no_nodes"}) == HEAD + MAX_REASONS + 1
    assert await db["jobs"].count_documents({"queue.position": {"$gte": 1}}) == HEAD
    await join("node-1")
    for _ in range(HEAD // MAX_REASONS + 2):
        await cycle.run()
    clock.now_s += 1
    await cycle.run()
    assert (await job.doc())["phase"] == "placed"
    assert await db["jobs"].count_documents({"queue.reason": "no_free_slots"}) == HEAD + MAX_REASONS
    told = await db["jobs"].find({"queue.position": {"$gte": 1}}).sort("created_at", 1).to_list(None)
    assert [doc["queue"]["position"] for doc in told] == list(range(1, HEAD + 1))


async def test_a_free_slot_is_offered_behind_any_number_of_jobs_that_cannot_use_it(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    large = await (await JobStory.created(db, spec=make_spec(resources={"num_slots": 2}))).accepted()
    await many_more(db, large, HEAD + 100)
    small = await (await JobStory.created(db)).accepted()
    last = {"created_at": datetime.now(UTC) + timedelta(days=1)}
    await db["jobs"].update_one({"_id": small.id}, {"$set": last})
    await join("node-1", 1)
    await make_cycle().run()
    assert (await small.doc())["phase"] == "placed"
    assert await db["jobs"].count_documents({"phase": "waiting"}) == HEAD + 101


async def test_many_schedulers_at_once_place_each_job_once_and_share_no_slot(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    for number in range(4):
        await join(f"node-{number}", 3)
    jobs = [
        await (await JobStory.created(db, spec=make_spec(resources={"num_slots": 1 + number % 2}))).accepted()
        for number in range(10)
    ]
    cycles = [make_cycle() for _ in range(4)]
    for _ in range(4):
        await asyncio.gather(*(cycle.run() for cycle in cycles))
    docs = [await job.doc() for job in jobs]
    placed = [doc for doc in docs if doc["phase"] == "placed"]
    assert [entry["type"] for doc in placed for entry in doc["outbox"]].count("JobPlaced") == len(placed)
    assert all(doc["attempt"] == 1 for doc in placed)
    named = [(member["node"], slot) for doc in placed for member in doc["members"] for slot in member["slots"]]
    assert len(named) == len(set(named)), "two jobs were given one slot"
    held = Counter(holder["job"] for holder in await holders(db))
    assert held == {doc["_id"]: doc["spec"]["resources"]["num_slots"] for doc in placed}
    assert len(named) >= 11, "at most one slot of twelve may be left over"


async def test_a_lost_run_goes_on_from_its_checkpoint_as_the_next_attempt(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    await cycle.run()
    await job.started()
    await checkpoint_at(job, 3, 1)
    await renew_run(db, job)
    first = await job.doc()
    await pass_ttl(cycle, clock)
    lost = await job.doc()
    assert (lost["phase"], lost["strikes"]) == ("waiting", 1)
    await free_all(db)
    await join("node-2")
    await cycle.run()
    again = await job.doc()
    assert (again["phase"], again["attempt"]) == ("placed", 2)
    assert again["resolved"] == first["resolved"]
    (placed,) = [entry for entry in again["outbox"] if entry["type"] == "JobPlaced" and entry["data"]["attempt"] == 2]
    assert placed["data"]["resumes_from_step"] == 3


async def test_a_run_that_renews_is_never_lost(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    await cycle.run()
    await job.started()
    for _ in range(4):
        await renew_run(db, job)
        await pass_ttl(cycle, clock, seconds=2.0)
    assert (await job.doc())["phase"] == "training"


async def test_a_run_that_nobody_ever_took_up_is_lost_too(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    await cycle.run()
    await pass_ttl(cycle, clock)
    doc = await job.doc()
    assert (doc["phase"], doc["attempt"], doc["strikes"]) == ("waiting", 1, 1)


async def test_a_lost_run_that_was_pausing_is_paused(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    await cycle.run()
    await job.started()
    await job.tell(f.PauseRequested(), op_id="pause")
    await pass_ttl(cycle, clock)
    assert (await job.doc())["phase"] == "paused"


async def test_three_strikes_fail_a_job(db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    for _ in range(3):
        await revive_node(db)
        await cycle.run()
        await pass_ttl(cycle, clock)
        await free_all(db)
    await cycle.run()
    doc = await job.doc()
    assert (doc["phase"], doc["attempt"], doc["error"]["code"]) == ("failed", 3, "attempts_exhausted")


async def test_a_new_checkpoint_wipes_the_strikes(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    for attempt in range(1, 5):
        await revive_node(db)
        await cycle.run()
        await job.started(attempt)
        await checkpoint_at(job, attempt, attempt)
        await pass_ttl(cycle, clock)
        await free_all(db)
    doc = await job.doc()
    assert doc["status"] == "queued"
    assert doc["attempt"] == 4


async def test_an_outage_of_the_database_is_not_silence(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    cycle = make_cycle()
    await cycle.run()
    await job.started()
    await pass_ttl(cycle, clock, seconds=2.0)

    async def no_answer(_most: int) -> None:
        raise ConnectionFailure("the database is away")

    monkeypatch.setattr(cycle._store, "read_snapshot", no_answer)
    clock.now_s += 1.0
    with pytest.raises(ConnectionFailure):
        await cycle.run()
    monkeypatch.undo()
    clock.now_s += 1.0
    await pass_ttl(cycle, clock, seconds=2.0)
    assert (await job.doc())["phase"] == "training"
    clock.now_s += 1.0
    await cycle.run()
    assert (await job.doc())["phase"] == "waiting"


async def test_a_silent_node_is_lost_and_gets_no_jobs(
    db: Database, make_cycle: MakeCycle, join: Join, base: str, clock: Any
) -> None:
    await join("node-1")
    cycle = make_cycle()
    await pass_ttl(cycle, clock)
    node = await db["nodes"].find_one({"_id": "node-1"})
    assert node is not None
    assert node["phase"] == "lost"
    job = await (await JobStory.created(db)).accepted()
    await cycle.run()
    assert (await job.doc())["queue"]["reason"] == "no_nodes"


async def test_a_draining_node_gets_no_jobs(db: Database, make_cycle: MakeCycle, join: Join, base: str) -> None:
    await join("node-1")
    await db["nodes"].update_one({"_id": "node-1"}, {"$set": {"draining": True}})
    job = await (await JobStory.created(db)).accepted()
    await make_cycle().run()
    assert (await job.doc())["phase"] == "waiting"


async def test_a_job_whose_base_vanished_fails_and_holds_no_slot(
    db: Database, make_cycle: MakeCycle, join: Join
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    await make_cycle().run()
    doc = await job.doc()
    assert (doc["phase"], doc["error"]["code"]) == ("failed", "base_missing")
    assert await holders(db) == []


async def test_a_placement_that_died_half_way_is_finished_with_the_same_slots(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    await join("node-1")
    await join("node-2")
    job = await (await JobStory.created(db)).accepted()
    claim = {"job": job.id, "attempt": 1, "claim": "x", "claimed_at": None}
    await db["nodes"].update_one({"_id": "node-2"}, {"$set": {"slots.0.holder": claim}})
    await make_cycle().run()
    assert (await job.doc())["members"][0]["node"] == "node-2"
    assert len(await holders(db)) == 1


async def test_a_standby_takes_over_when_the_active_one_is_silent(db: Database, clock: Any) -> None:
    first, second = Leader(db, clock, "a", 60.0), Leader(db, clock, "b", 60.0)
    assert await first.renew()
    assert not await second.renew()
    assert first.is_active
    assert not second.is_active
    over: list[Doc] = [{"$set": {"until": {"$subtract": ["$$NOW", 1000]}}}]
    assert (await db["leases"].update_one({"_id": LEASE}, over)).matched_count == 1
    clock.now_s += 60
    assert await second.renew()
    assert not first.is_active
    assert not await first.renew()


async def test_an_active_one_that_ends_in_order_is_followed_at_once(db: Database, clock: Any) -> None:
    first, second = Leader(db, clock, "a", 60.0), Leader(db, clock, "b", 60.0)
    async with first.resigning():
        assert await first.renew()
        assert not await second.renew()
    assert await second.renew()


async def test_a_job_that_cannot_be_read_holds_up_no_other(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    await join("node-1", 1)
    broken, good = [await (await JobStory.created(db)).accepted() for _ in range(2)]
    await db["jobs"].update_one({"_id": broken.id}, {"$set": {"datasets.training.num_examples": "many"}})
    cycle = make_cycle()
    await cycle.run()
    await cycle.run()
    assert (await good.doc())["phase"] == "placed"
    assert (await broken.doc())["phase"] == "waiting"


async def fail_run(job: JobStory, attempt: int) -> None:
    problem = f.Problem(code=FailureReason.INTERNAL, message="the driver is dead", retryable=True)
    assert (await job.tell(f.RunFailed(problem=problem, retryable=True), attempt=attempt, op_id=f"{attempt}/f")).applied


async def pass_rest(db: Database, seconds: int) -> None:
    """As if it had been so much longer ago."""
    ago = {"$dateSubtract": {"startDate": {"$last": "$struck.at"}, "unit": "second", "amount": seconds}}
    await db["jobs"].update_many({}, [{"$set": {"struck": [{"$mergeObjects": [{"$last": "$struck"}, {"at": ago}]}]}}])


async def test_a_failed_job_rests_and_goes_on_elsewhere_and_a_standby_knows_that(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    await make_cycle(retry_rest_s=15.0).run()
    await fail_run(job, 1)
    await free_all(db)
    await join("node-2")
    await make_cycle(retry_rest_s=15.0).run()
    doc = await job.doc()
    assert (doc["phase"], doc["queue"]["reason"]) == ("waiting", "resting")
    assert doc["queue"]["message"] == "Attempt 1 failed; the job rests for 30 s before attempt 2."
    await pass_rest(db, 31)
    await make_cycle(retry_rest_s=15.0).run()
    doc = await job.doc()
    assert (doc["attempt"], doc["members"][0]["node"]) == (2, "node-2")


async def test_a_node_whose_last_runs_failed_gets_no_jobs_for_a_while(
    db: Database, make_cycle: MakeCycle, join: Join, base: str
) -> None:
    await join("node-1")
    job = await (await JobStory.created(db)).accepted()
    failed: Doc = {"jobs": ["ftjob-a", "ftjob-b"], "at": "$$NOW"}
    await db["nodes"].update_one({"_id": "node-1"}, [{"$set": {"struck": failed}}])
    await make_cycle(retry_rest_s=15.0).run()
    assert (await job.doc())["queue"]["reason"] == "nodes_rest"
    ago = {"$dateSubtract": {"startDate": "$struck.at", "unit": "second", "amount": 31}}
    await db["nodes"].update_one({"_id": "node-1"}, [{"$set": {"struck.at": ago}}])
    await make_cycle(retry_rest_s=15.0).run()
    assert (await job.doc())["phase"] == "placed"


async def test_a_long_queue_is_told_its_reasons_over_several_cycles(db: Database, make_cycle: MakeCycle) -> None:
    job = await (await JobStory.created(db)).accepted()
    doc = await job.doc()
    await db["jobs"].insert_many([doc | {"_id": f"{job.id}-{number}"} for number in range(MAX_REASONS)])
    told: Doc = {"queue.reason": "no_nodes"}
    await make_cycle().run()
    assert await db["jobs"].count_documents(told) == MAX_REASONS
    await make_cycle().run()
    assert await db["jobs"].count_documents(told) == MAX_REASONS + 1
