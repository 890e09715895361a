"""The checker of invariants is believed because it is checked: sound histories are passed, each breakage is named."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from builders.breakages import BREAKAGES, World
from builders.invariants import broken_invariants, kinds_told
from builders.jobs import ACTOR, OWNED, JobStory, make_step
from builders.leftovers import stray_processes
from builders.lying_api import ApiThatMayLie
from builders.sound_history import NODE, hold, project, succeeded, uploaded
from luthier_common.contract import events as f
from luthier_common.journal.advance import create
from luthier_common.kit.mongo import open_mongo
from luthier_common.kit.objects import open_objects


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
        file_key = await uploaded(db, objects)
        records = await project(db)
        yield World(db, objects, home, done.id, running.id, cancelled.id, deleted.id, file_key, records)


async def test_a_sound_history_is_passed(world: World) -> None:
    assert await world.broken() == []


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
