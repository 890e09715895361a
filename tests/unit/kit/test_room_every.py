"""The level-triggered loop of a room."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from pymongo.errors import CursorNotFound, OperationFailure

from builders.waiting import until
from luthier_common.kit.errors import TransientError
from luthier_common.kit.room import Room


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    made = Room("test", stop_after_s=60)
    yield made
    made.stopping.set()


async def _seen(condition: asyncio.Event | None, within_s: float = 5.0) -> None:
    assert condition is not None
    await asyncio.wait_for(condition.wait(), within_s)


async def test_it_looks_at_once_and_again_without_being_woken(room: Room) -> None:
    three, runs = asyncio.Event(), []

    async def work() -> None:
        runs.append(time.monotonic())
        if len(runs) == 3:
            three.set()

    room.spawn("loop", room.every(0.05, work))
    await _seen(three)
    assert runs[2] - runs[0] >= 0.1


async def test_waking_does_not_wait_for_the_clock_and_is_never_lost(room: Room) -> None:
    wake, second, runs = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            wake.set()  # arrives while the work is under way
        else:
            second.set()

    room.spawn("loop", room.every(3600, work, wake))
    await _seen(second)
    second.clear()
    wake.set()
    await _seen(second)


@pytest.mark.parametrize(
    "error",
    [
        TransientError("away"),
        ConnectionResetError(),
        TimeoutError(),
        CursorNotFound("the server was started again", 43),
        OperationFailure("no majority read yet", 134),
    ],
)
async def test_a_transient_error_is_tried_again_and_the_loop_stays_alive(room: Room, error: Exception) -> None:
    done, errors = asyncio.Event(), [error]

    async def work() -> None:
        if errors:
            raise errors.pop()
        done.set()

    room.spawn("relay", room.every(0.01, work))
    await _seen(done)
    assert not room.crashed
    assert room.health.stale() == []


async def test_any_other_error_stops_the_room(room: Room) -> None:
    async def work() -> None:
        raise KeyError("a bug")

    room.spawn("relay", room.every(0.01, work))
    await _seen(room.stopping)
    assert room.crashed


async def test_work_that_hangs_makes_the_process_unhealthy(room: Room) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    async def is_stale() -> bool:
        return room.health.stale() == ["relay"]

    task = room.spawn("relay", room.every(0.01, work, stale_after_s=0.1))
    await until(is_stale, what="the loop that hangs")
    task.cancel()


async def test_it_ends_when_the_room_stops(room: Room) -> None:
    async def work() -> None:
        return None

    task = room.spawn("relay", room.every(3600, work))
    await asyncio.sleep(0)
    room.stopping.set()
    await asyncio.wait_for(task, 2)
    assert room.health.stale() == []
