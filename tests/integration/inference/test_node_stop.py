"""The end of an inference node."""

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from builders.engine_faults import in_each_forward
from builders.inference_room import BODY
from builders.waiting import until
from luthier_common.kit.mongo import Database
from luthier_inference.chat import error_to_wire, parse_chat
from luthier_inference.serving import EngineDrainingError
from luthier_inference.watch import EngineLostError, EngineWatch


@pytest.mark.usefixtures("catalogue")
async def test_a_node_that_stops_sends_new_requests_away_and_ends_what_it_began(db: Database, make_room: Any) -> None:
    room = make_room(default_base="tiny", engine_drain_s=60, renew_s=0.05)
    assert await room.serving.load_default()
    await room.node.renew()
    body, stopping = parse_chat({**BODY, "base": "tiny"}), asyncio.Event()
    draining = asyncio.create_task(room.node.drain(stopping))
    async with room.serving.prepare(body) as prepared:
        stopping.set()
        await until(lambda: db["nodes"].find_one({"_id": "inference-here", "draining": True}))
        with pytest.raises(EngineDrainingError) as caught:
            await room.serving.prepare(body).__aenter__()
        assert error_to_wire(caught.value)[0] == 503, "the next engine is asked"
        assert [delta async for delta in room.serving.answer(prepared)][-1].finish_reason
        assert not draining.done()
    await asyncio.wait_for(draining, 10)


@pytest.mark.usefixtures("catalogue")
async def test_a_node_waits_so_long_and_no_longer(make_room: Any) -> None:
    room = make_room(default_base="tiny", engine_drain_s=0.2)
    assert await room.serving.load_default()
    stopping = asyncio.Event()
    stopping.set()
    async with room.serving.prepare(parse_chat({**BODY, "base": "tiny"})):
        await asyncio.wait_for(room.node.drain(stopping), 10)


@pytest.mark.usefixtures("catalogue")
async def test_a_node_that_stops_waits_for_answers_only(make_room: Any) -> None:
    """A trial, or a base that is being loaded, is begun again by the next one."""
    room = make_room(default_base="tiny", engine_drain_s=60)
    stopping = asyncio.Event()
    stopping.set()
    async with room.serving.base("tiny"):
        await asyncio.wait_for(room.node.drain(stopping), 10)


@pytest.mark.usefixtures("catalogue")
async def test_nobody_waits_for_the_answers_of_an_engine_that_hangs(make_room: Any) -> None:
    room = make_room(default_base="tiny", engine_drain_s=60)
    assert await room.serving.load_default()
    watch, stopping, go_on = EngineWatch(room.pool, look_every_s=1, hung_after_s=2), asyncio.Event(), threading.Event()
    stopping.set()
    with in_each_forward(lambda *_: go_on.wait(60)):
        answering = asyncio.create_task(room.answer("tiny"))
        try:
            await until(_is(lambda: room.pool.loaded[0].engine.num_pending == 1))
            with pytest.raises(EngineLostError):
                await until(watch.look, within_s=20)
            await asyncio.wait_for(room.node.drain(stopping), 10)
            assert not answering.done()
        finally:
            go_on.set()
        await answering


def _is(condition: Callable[[], bool]) -> Callable[[], Any]:
    async def seen() -> bool:
        return condition()

    return seen


async def test_node_leaves_in_order(node: Any, db: Database) -> None:
    node.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(node.process.wait(), 15) == 0
    doc = await db["nodes"].find_one({"_id": "inference-test"})
    assert doc is not None
    assert doc["phase"] == "left"
    assert doc["bases"] == []
    assert [entry["type"] for entry in doc["outbox"]] == ["NodeJoined", "NodeLeft"]
