"""Ways to break a sound history, each beside the invariant that it breaks."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from builders.invariants import DEED, broken_invariants
from builders.jobs import JobStory, make_step
from builders.sound_history import NODE, book, hold
from builders.topic_records import Told
from luthier_common.contract.ids import model_id_of
from luthier_common.journal.rows import EVENTS
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore


class World(NamedTuple):
    """A sound history: one job succeeded at its second attempt, one runs, one is cancelled, one deleted; and a file."""

    db: Database
    objects: ObjectStore
    home: Path
    done: str
    running: str
    cancelled: str
    deleted: str
    file_key: str
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


async def _held_elsewhere(world: World) -> None:
    await hold(world.db, world.running, 1, slot=1)


async def _slot_of_two(world: World) -> None:
    first = await world.db["usage"].find_one({"_id": f"{world.done}/a1/{NODE}"})
    assert first is not None
    long = {"from": first["from"].replace(year=2020), "to": first["to"].replace(year=2100)}
    await world.db["usage"].insert_one(first | {"_id": "ftjob-other/a1/node-1"} | long)


async def _usage_without_end(world: World) -> None:
    await world.db["usage"].update_one({"_id": f"{world.done}/a2/{NODE}"}, {"$set": {"to": None}})


async def _usage_lost(world: World) -> None:
    await world.db["usage"].delete_one({"_id": f"{world.done}/a2/{NODE}"})


async def _checkpoint_damaged(world: World) -> None:
    key = f"org-default/proj-default/jobs/{world.done}/a2/step-2/w.safetensors"
    await world.objects.put(key, b"other bytes")


async def _checkpoint_named_otherwise(world: World) -> None:
    key = f"org-default/proj-default/jobs/{world.done}/a2/step-2/manifest.json"
    await world.objects.put(key, b'{"files": []}')


async def _file_damaged(world: World) -> None:
    await world.objects.put(world.file_key, b"other bytes")


async def _file_missing(world: World) -> None:
    await world.objects.delete(world.file_key)


async def _model_file_missing(world: World) -> None:
    await world.objects.delete(f"org-default/proj-default/models/{model_id_of(world.done, 1)}/w.safetensors")


async def _stopped_short(world: World) -> None:
    await world.db["jobs"].update_one({"_id": world.done}, {"$set": {"finished.step": 5}})


async def _model_of_a_cancelled_job(world: World) -> None:
    model = await world.db["models"].find_one({"job": world.done})
    assert model is not None
    await world.db["models"].insert_one(model | {"_id": "model-x", "job": world.cancelled})


async def _staged_for_ever(world: World) -> None:
    await world.db["models"].update_one({"job": world.done}, {"$set": {"phase": "staged"}})


async def _registered_twice(world: World) -> None:
    row = await world.db[EVENTS].find_one({"thing": world.done, "type": "ModelRegistered"})
    assert row is not None
    await world.db[EVENTS].insert_one(row | {"_id": f"{row['_id']}b"})


async def _model_of_another_name(world: World) -> None:
    await world.db["models"].update_one({"job": world.done}, {"$set": {"name": "ft:other"}})


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


async def _registered_by_nobody(world: World) -> None:
    await ledger.record(
        world.db, "o/x", sha256="0" * 64, num_bytes=1, org="o", project="p", reference=f"registering/{world.done}"
    )


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
    ("I6", _held_elsewhere),
    ("I6", _slot_of_two),
    ("I6", _usage_lost),
    ("I6", _usage_without_end),
    ("I7", _checkpoint_damaged),
    ("I7", _model_file_missing),
    ("I7", _checkpoint_let_go),
    ("I7", _checkpoint_named_otherwise),
    ("I7", _file_damaged),
    ("I7", _file_missing),
    ("I8", _stopped_short),
    ("I8", _model_gone),
    ("I8", _model_of_a_cancelled_job),
    ("I8", _model_of_another_name),
    ("I8", _staged_for_ever),
    ("I8", _registered_twice),
    ("I11", _fact_waits),
    ("I12", _object_unknown),
    ("I12", _reference_to_nothing),
    ("I12", _registered_by_nobody),
    ("I12", _kept_by_deleted),
    ("I12", _run_directory),
    ("I12", _half_written),
]
