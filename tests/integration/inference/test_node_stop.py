"""The end of an inference node."""

import asyncio
import signal
from typing import Any

import pytest

from builders.inference_room import BODY
from builders.waiting import until
from luthier_common.kit.mongo import Database
from luthier_inference.chat import error_to_wire, parse_chat
from luthier_inference.serving import EngineDrainingError


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


async def test_node_leaves_in_order(node: Any, db: Database) -> None:
    node.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(node.process.wait(), 15) == 0
    doc = await db["nodes"].find_one({"_id": "inference-test"})
    assert doc is not None
    assert doc["phase"] == "left"
    assert doc["bases"] == []
    assert [entry["type"] for entry in doc["outbox"]] == ["NodeJoined", "NodeLeft"]
