"""What a node makes of its own setbacks: late children, full disks, claims that led to nothing, a stop in between."""

import errno
import sys
from typing import Any

import pytest

from builders.jobs import JobStory
from builders.trainer_node import DEAF, NODE, World, working
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.kit.mongo import Doc
from luthier_trainer.domain import Claim, claims_of
from luthier_trainer.executor import LocalExecutor
from luthier_trainer.supervisor import Supervisor
from luthier_trainer.workplace import Workplace

pytestmark = pytest.mark.timeout(120)


def node_with(world: World, *command: str, num_slots: int = 1, **changes: Any) -> Supervisor:
    settings = world.settings(pause_budget_s=0.5, trainer_cpu_slots=num_slots, **changes)
    workplace = Workplace(settings.home, NODE)
    return Supervisor(world.store(), world.objects, workplace, LocalExecutor(command), settings)


async def a_deaf_run(world: World) -> JobStory:
    story = await world.job()
    await world.place(story)
    runs = world.root / "home" / "trainer" / NODE

    async def is_ready() -> bool:
        return any(runs.glob("*/ready"))

    await until(is_ready, within_s=30, what="a child at work")
    return story


async def test_a_step_longer_than_the_time_to_pause_is_no_crash(world: World) -> None:
    async with working(node_with(world, sys.executable, "-c", DEAF)):
        story = await a_deaf_run(world)
        await story.tell(f.PauseRequested(), op_id="pause")
        doc = await story.reach("paused")
    assert doc["strikes"] == 0
    assert (await world.facts(story.id))[-1]["type"] == "RunPaused"


async def test_a_step_longer_than_the_time_to_stop_is_no_crash(world: World) -> None:
    async with working(node_with(world, sys.executable, "-c", DEAF)):
        story = await a_deaf_run(world)
    doc = await story.doc()
    assert (doc["phase"], doc["strikes"]) == ("waiting", 0)


async def test_a_child_that_others_kill_is_a_crash_and_its_node_remembers(world: World) -> None:
    async with working(node_with(world, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")) as node:
        story = await world.job()
        await world.place(story)
        assert (await story.reach("waiting"))["strikes"] == 1

        async def jobs_that_failed() -> list[str]:
            node: Doc = await world.db["nodes"].find_one({"_id": NODE}) or {}
            return list((node.get("struck") or {}).get("jobs", []))

        assert await until(jobs_that_failed, what="the node's memory") == [story.id]
        await node._store.free(Claim(story.id, 1, (0,), None), works=False)
        assert await jobs_that_failed() == [story.id], "one run counts once"


async def test_a_job_of_a_newer_version_fails_alone_and_other_runs_of_the_node_go_on(world: World) -> None:
    async with working(node_with(world, sys.executable, "-c", DEAF, num_slots=2)) as node:
        running = await a_deaf_run(world)
        newer = await world.job()
        await world.db["jobs"].update_one({"_id": newer.id}, {"$set": {"spec.method": "method-of-next-year"}})
        await world.place(newer, slot=1)
        await newer.reach("waiting")

        async def is_free() -> bool:
            return (await world.holders())[1] is None

        await until(is_free, what="the slot of the job that cannot be read")
        assert [key[0] for key in node._runs] == [running.id]
    (failed,) = [fact["data"] for fact in await world.facts(newer.id) if fact["type"] == "RunFailed"]
    assert (failed["problem"]["code"], failed["retryable"]) == ("internal_error", True)
    assert failed["problem"]["message"] == "The node that was to run the job cannot read it."


async def test_a_full_disk_gives_the_slots_back_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_args: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(world.objects, "download", full)
    async with working(world.supervisor()):
        story = await world.job()
        await world.place(story)
        await story.reach("waiting")
    (failed,) = [fact["data"] for fact in await world.facts(story.id) if fact["type"] == "RunFailed"]
    assert (failed["problem"]["code"], failed["retryable"]) == ("storage", True)
    assert failed["problem"]["message"] == "The node that was to run the job has no room left."


async def test_a_claim_that_never_ran_is_not_billed_and_does_not_bend_the_bill_of_one_that_did(world: World) -> None:
    store = world.store()
    await world.join(store)
    story = await world.job()

    async def claimed() -> Claim:
        slots, _ = await store.read_slots() or ([], None)
        (claim,) = claims_of(slots)
        return claim

    await world.claim(story.id, 1, token="first")
    await store.withdraw(await claimed())
    assert await world.holder() is None
    assert await world.db["usage"].count_documents({}) == 0
    await world.place(story)
    claim = await claimed()
    await store.free(claim)
    (row,) = await world.db["usage"].find({}).to_list(None)
    assert (row["job"], row["attempt"], row["from"]) == (story.id, 1, claim.claimed_at)
    assert row["from"] <= row["to"]


async def test_a_slot_whose_device_is_gone_takes_no_other_job(world: World) -> None:
    """A trainer died with two runs; when it comes back one of its devices is not there any more."""
    store = world.store()
    await world.join(store, "gpu", num_slots=2)
    stories = [await world.job(), await world.job()]
    for slot, story in enumerate(stories):
        await world.place(story, slot=slot)
        assert await store.renew_lease(story.id, 1) == "run"
    async with working(world.supervisor(trainer_cpu_slots=1)):
        for story in stories:
            await story.reach("waiting")

        async def is_free() -> bool:
            return not any((await world.holders()).values())

        await until(is_free, what="free slots")
        assert await world.holders() == {0: None}
        node = await world.db["nodes"].find_one({"_id": NODE}) or {}
    changes = [fact["data"]["num_slots"] for fact in node["outbox"] if fact["type"] == "NodeCapacityChanged"]
    assert changes == [1]


async def test_no_run_begins_on_a_node_that_has_begun_to_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node = world.supervisor()
    await node.renew()
    read_jobs = node._store.read_jobs

    async def stop_and_read(job_ids: list[str]) -> dict[str, Doc]:
        await node.stop()
        return await read_jobs(job_ids)

    monkeypatch.setattr(node._store, "read_jobs", stop_and_read)
    story = await world.job()
    await world.place(story)
    await node.look()
    assert not node._runs
    assert (await story.doc())["phase"] == "placed"


async def test_slots_that_a_second_scheduler_claimed_for_a_run_are_free_again_while_it_goes_on(world: World) -> None:
    async with working(node_with(world, sys.executable, "-c", DEAF, num_slots=2, renew_s=60.0, lease_ttl_s=2.0)):
        story = await a_deaf_run(world)
        lease = (await story.doc())["lease"]
        await world.claim(story.id, 1, slot=1, token="stray")

        async def is_free() -> bool:
            return (await world.holders())[1] is None

        await until(is_free, what="the slot that nobody was placed on")
        assert (await world.holders())[0] is not None
        assert (await story.doc())["lease"] == lease, "the run is left in peace"
        assert await world.db["usage"].count_documents({}) == 0


async def test_a_claim_that_was_made_again_is_not_withdrawn_with_the_old_one(world: World) -> None:
    """A scheduler claims, stalls for long, and goes on just when the node takes the claim back."""
    store = world.store()
    await world.join(store)
    story = await world.job()
    await world.claim(story.id, 1, token="old")
    slots, _ = await store.read_slots() or ([], None)
    (old,) = claims_of(slots)
    await world.db["nodes"].update_one({"_id": NODE}, {"$set": {"slots.0.holder": None}})
    await world.place(story)
    await store.withdraw(old)
    assert (await world.holder() or {})["job"] == story.id
