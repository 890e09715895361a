"""The checker of invariants is believed because it is checked: sound histories are passed, each breakage is named."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from builders.invariants import DEED, broken_invariants, kinds_told
from builders.jobs import ACTOR, OWNED, JobStory, make_step
from builders.leftovers import stray_processes
from builders.lying_api import ApiThatMayLie
from builders.sound_history import NODE, book, hold, project, succeeded
from builders.topic_records import Told
from luthier_common.contract import events as f
from luthier_common.contract.ids import model_id_of
from luthier_common.journal.advance import create
from luthier_common.journal.rows import EVENTS
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database, open_mongo
from luthier_common.kit.objects import ObjectStore, open_objects


class World(NamedTuple):
    """A sound history: one job that succeeded at its second attempt, one that runs, one cancelled, one deleted."""

    db: Database
    objects: ObjectStore
    home: Path
    done: str
    running: str
    cancelled: str
    deleted: str
    records: list[Told]

    async def broken(self) -> list[str]:
        return await broken_invariants(
            self.db,
            events_of_topic=self.records,
            objects=self.objects,
            home=self.home,
            acknowledged=[self.done, self.running, self.cancelled, self.deleted],
            is_log_whole=True,
        )


@pytest.fixture
async def world(mongo_url: str, database_name: str, tmp_path: Path) -> AsyncIterator[World]:
    home = tmp_path / "home"
    async with (
        open_mongo(mongo_url, database_name) as db,
        open_objects((home / "objects").as_uri()) as objects,
    ):
        # No index: unique ones would refuse some of what is broken here, and the checker must not rely on them.
        slots = [{"index": 0, "gpu": None, "holder": None}, {"index": 1, "gpu": None, "holder": None}]
        joined = f.NodeJoined(role="trainer", num_slots=2, device="cpu")
        await create(db, joined, NODE, {**OWNED, "slots": slots}, actor=ACTOR)
        done = await succeeded(db, objects)
        running = await JobStory.created(db)
        await running.in_training()
        await running.tell(make_step(1), attempt=1)
        await hold(db, running.id, 1)
        cancelled = await JobStory.created(db)
        await cancelled.tell(f.JobCancelled(), op_id="cancel")
        deleted = await JobStory.created(db)
        await deleted.tell(f.JobCancelled(), op_id="cancel")
        await deleted.tell(f.JobDeleted(), op_id="delete")
        records = await project(db)
        yield World(db, objects, home, done.id, running.id, cancelled.id, deleted.id, records)


async def test_a_sound_history_is_passed(world: World) -> None:
    assert await world.broken() == []


async def _set_row(world: World, seq: int, **changes: object) -> None:
    await world.db[EVENTS].update_one({"_id": f"job/{world.done}/{seq}"}, {"$set": changes})


async def _last_seq(world: World) -> int:
    doc = await world.db["jobs"].find_one({"_id": world.done})
    assert doc is not None
    return int(doc["seq"])


async def _lose_job(world: World) -> None:
    await world.db["jobs"].delete_one({"_id": world.cancelled})


async def _double_create(world: World) -> None:
    for job_id in (world.done, world.running):
        await world.db["jobs"].update_one({"_id": job_id}, {"$set": {"metadata": [{"k": DEED, "v": "once"}]}})


async def _lose_event(world: World) -> None:
    await world.db[EVENTS].delete_one({"_id": f"job/{world.done}/4"})


async def _double_event(world: World) -> None:
    row = await world.db[EVENTS].find_one({"_id": f"job/{world.done}/4"})
    assert row is not None
    await world.db[EVENTS].insert_one(row | {"_id": f"job/{world.done}/4b"})


async def _change_topic(world: World) -> None:
    first = world.records[0]
    world.records[0] = first._replace(value=first.value.replace(b'"seq":1', b'"seq": 1'))


async def _unlisted_record(world: World) -> None:
    world.records.append(Told("job/ftjob-nobody/1", b"{}", "here"))


async def _told_in_another_order(world: World) -> None:
    places = [place for place, told in enumerate(world.records) if told.fact.startswith(f"job/{world.done}/")]
    first, second = places[2:4]
    world.records[first], world.records[second] = world.records[second], world.records[first]


async def _second_end(world: World) -> None:
    await _set_row(world, 5, terminal=True)


async def _end_of_nothing(world: World) -> None:
    await world.db[EVENTS].update_one({"thing": world.running, "seq": 2}, {"$set": {"terminal": True}})


async def _end_not_last(world: World) -> None:
    await world.db[EVENTS].update_one(
        {"_id": f"job/{world.done}/{await _last_seq(world)}"}, {"$unset": {"terminal": 1}}
    )
    await _set_row(world, 5, terminal=True)


async def _told_after_deletion(world: World) -> None:
    rows = {"thing": world.deleted, "seq": {"$in": [2, 3]}}
    cancelled, deleted = await world.db[EVENTS].find(rows).sort("seq", 1).to_list(2)
    for row, changes in ((cancelled, {"type": "JobDeleted"}), (deleted, {"type": "JobCancelled"})):
        await world.db[EVENTS].update_one({"_id": row["_id"]}, {"$set": changes})


async def _deleted_untold(world: World) -> None:
    await world.db["jobs"].update_one({"_id": world.cancelled}, {"$set": {"deleted": True}})


async def _kept_by_deleted(world: World) -> None:
    await ledger.record(
        world.db, "org-default/x", sha256="0" * 64, num_bytes=1, org="o", project="p", reference=f"job/{world.deleted}"
    )
    await _settle(world)


async def _other_status(world: World) -> None:
    await world.db["jobs"].update_one({"_id": world.running}, {"$set": {"phase": "waiting", "status": "queued"}})
    await world.db["nodes"].update_one({"_id": NODE}, {"$set": {"slots.0.holder": None}})
    await book(world.db, world.running, 1, slot=1)


async def _stale_fact(world: World) -> None:
    await _set_row(world, await _last_seq(world) - 4, **{"body.attempt": 1})


async def _step_back(world: World) -> None:
    row = await world.db[EVENTS].find_one({"thing": world.done, "type": "StepCompleted", "body.attempt": 2})
    assert row is not None
    await _set_row(world, row["seq"], **{"body.data.step": 1})


async def _held_after_end(world: World) -> None:
    await hold(world.db, world.done, 2, slot=1)


async def _slot_of_two(world: World) -> None:
    first = await world.db["usage"].find_one({"_id": f"{world.done}/a1/{NODE}"})
    assert first is not None
    long = {"from": first["from"].replace(year=2020), "to": first["to"].replace(year=2100)}
    await world.db["usage"].insert_one(first | {"_id": "ftjob-other/a1/node-1"} | long)


async def _usage_lost(world: World) -> None:
    await world.db["usage"].delete_one({"_id": f"{world.done}/a2/{NODE}"})


async def _checkpoint_damaged(world: World) -> None:
    key = f"org-default/proj-default/jobs/{world.done}/a2/step-2/w.safetensors"
    await world.objects.put(key, b"other bytes")


async def _model_file_missing(world: World) -> None:
    await world.objects.delete(f"org-default/proj-default/models/{model_id_of(world.done, 1)}/w.safetensors")


async def _stopped_short(world: World) -> None:
    await world.db["jobs"].update_one({"_id": world.done}, {"$set": {"finished.step": 5}})


async def _model_gone(world: World) -> None:
    model_id = model_id_of(world.done, 1)
    await world.db["models"].delete_one({"_id": model_id})
    await world.db[EVENTS].delete_many({"thing": model_id})
    await ledger.release(world.db, f"model/{model_id}")


async def _fact_waits(world: World) -> None:
    await JobStory(world.db, world.running).tell(make_step(2), attempt=1)


async def _object_unknown(world: World) -> None:
    await world.objects.put("org-default/proj-default/jobs/nobody/a1/log.txt", b"left")


async def _reference_to_nothing(world: World) -> None:
    await ledger.record(
        world.db, "org-default/x", sha256="0" * 64, num_bytes=1, org="o", project="p", reference="job/ftjob-nobody"
    )
    await _settle(world)


async def _settle(world: World) -> None:
    """The sweeper has looked, and did not see what it had to see."""
    await world.db[ledger.COLLECTION].update_many({}, {"$unset": {"intent_until": ""}})


async def _checkpoint_let_go(world: World) -> None:
    await ledger.release(world.db, f"job/{world.done}")


async def _bytes_of_another_attempt(world: World) -> None:
    blob = "body.data.blob.key"
    saved = await world.db[EVENTS].find_one({"thing": world.done, "type": "CheckpointSaved", "body.attempt": 2})
    assert saved is not None
    await _set_row(world, saved["seq"], **{blob: saved["body"]["data"]["blob"]["key"].replace("/a2/", "/a1/")})


async def _stated_by_another_room(world: World) -> None:
    await _set_row(world, await _last_seq(world), **{"body.actor.room": "trainer"})


async def _run_directory(world: World) -> None:
    (world.home / "trainer" / NODE / f"{world.done}-a2").mkdir(parents=True)


async def _half_written(world: World) -> None:
    (world.home / "objects" / ".unfinished" / ".part-x").write_bytes(b"half")


BREAKAGES: list[tuple[str, Callable[[World], Awaitable[None]]]] = [
    ("I1", _lose_job),
    ("I1", _double_create),
    ("I2", _lose_event),
    ("I2", _double_event),
    ("I2", _change_topic),
    ("I2", _unlisted_record),
    ("I2", _told_in_another_order),
    ("I3", _second_end),
    ("I3", _end_of_nothing),
    ("I3", _end_not_last),
    ("I3", _told_after_deletion),
    ("I4", _deleted_untold),
    ("I4", _other_status),
    ("I4", _stated_by_another_room),
    ("I5", _stale_fact),
    ("I5", _step_back),
    ("I5", _bytes_of_another_attempt),
    ("I6", _held_after_end),
    ("I6", _slot_of_two),
    ("I6", _usage_lost),
    ("I7", _checkpoint_damaged),
    ("I7", _model_file_missing),
    ("I7", _checkpoint_let_go),
    ("I8", _stopped_short),
    ("I8", _model_gone),
    ("I11", _fact_waits),
    ("I12", _object_unknown),
    ("I12", _reference_to_nothing),
    ("I12", _kept_by_deleted),
    ("I12", _run_directory),
    ("I12", _half_written),
]


@pytest.mark.parametrize(("invariant", "breaks"), BREAKAGES, ids=[f"{i}{b.__name__}" for i, b in BREAKAGES])
async def test_each_breakage_is_named(world: World, invariant: str, breaks: Callable[[World], Awaitable[None]]) -> None:
    await breaks(world)
    assert invariant in kinds_told(await world.broken())


def _shows_no_job(api: ApiThatMayLie, done: str) -> None:
    del api.jobs[done]


def _shows_another_status(api: ApiThatMayLie, done: str) -> None:
    api.jobs[done]["status"] = "running"


def _lists_no_events(api: ApiThatMayLie, done: str) -> None:
    api.events[done] = []


def _lists_an_event_twice(api: ApiThatMayLie, done: str) -> None:
    api.events[done].insert(0, api.events[done][0])


def _lists_the_oldest_first(api: ApiThatMayLie, done: str) -> None:
    api.events[done].reverse()


def _names_no_model(api: ApiThatMayLie, done: str) -> None:
    api.jobs[done]["fine_tuned_model"] = None


def _says_nothing(api: ApiThatMayLie, _: str) -> None:
    api.num_tokens = 0


LIES: list[tuple[str, Callable[[ApiThatMayLie, str], None]]] = [
    ("I1", _shows_no_job),
    ("I4", _shows_another_status),
    ("I2", _lists_no_events),
    ("I2", _lists_an_event_twice),
    ("I2", _lists_the_oldest_first),
    ("I8", _names_no_model),
    ("I8", _says_nothing),
]


async def test_what_users_are_shown_is_passed_where_it_is_so(world: World) -> None:
    api = await ApiThatMayLie.of(world.db)
    assert await broken_invariants(world.db, api=api.client(), acknowledged=[world.done, world.deleted]) == []


@pytest.mark.parametrize(("invariant", "lies"), LIES, ids=[f"{i}{lie.__name__}" for i, lie in LIES])
async def test_each_lie_to_users_is_named(
    world: World, invariant: str, lies: Callable[[ApiThatMayLie, str], None]
) -> None:
    api = await ApiThatMayLie.of(world.db)
    lies(api, world.done)
    assert kinds_told(await broken_invariants(world.db, api=api.client(), acknowledged=[world.done])) == {invariant}


async def test_a_deleted_job_that_is_still_shown_is_named(world: World) -> None:
    api = await ApiThatMayLie.of(world.db)
    api.jobs[world.deleted], api.events[world.deleted] = api.jobs[world.done] | {"id": world.deleted}, []
    assert kinds_told(await broken_invariants(world.db, api=api.client(), acknowledged=[world.deleted])) >= {"I1"}


async def test_a_job_that_has_not_ended_is_named(world: World) -> None:
    broken = await broken_invariants(world.db, acknowledged=[world.done, world.running], all_ended=True)
    assert broken == [f"I3 job {world.running}: it has not ended, it is training"]


async def test_an_orphaned_process_is_named(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60", env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    try:
        assert [s for s in stray_processes(tmp_path, None) if f"process {child.pid} " in s]
        assert stray_processes(tmp_path, os.getpid()) == []
        assert [s for s in stray_processes(tmp_path, child.pid) if s] == []
    finally:
        child.kill()
        await child.wait()
