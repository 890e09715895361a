"""The room as a process: woken by the stream, it places at once, and it ends in order."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from builders.jobs import JobStory
from builders.room_process import room_process
from builders.waiting import until
from luthier_common.journal.relay import Relay
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Writer


@asynccontextmanager
async def a_relay(db: Database, kafka_url: str) -> AsyncIterator[None]:
    writer = Writer(kafka_url)
    relay = Relay(db, writer, owner=secrets.token_hex(4), source="luthier/test/1", clock=SystemClock())

    async def publish() -> None:
        while True:
            with suppress(TransientError):
                await relay.step()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await writer.close()


async def test_data_accepted_is_placed_at_once_and_the_room_ends_in_order(
    db: Database, mongo_url: str, database_name: str, kafka_url: str, join: Callable[..., Any], base: str
) -> None:
    env = {"LUTHIER_OBJECTS_URL": "file:///unused", "LUTHIER_TICK_S": "20"}
    await join("node-1", 32)
    async with a_relay(db, kafka_url), room_process("scheduler", mongo_url, database_name, kafka_url, env):

        async def seconds_to_placed() -> float:
            job = await (await JobStory.created(db)).accepted()
            accepted_at = time.monotonic()
            await until(lambda: is_placed(db, job.id), within_s=60, every_s=0.005, what="placed")
            return time.monotonic() - accepted_at

        took_s = [await seconds_to_placed() for _ in range(8)]
        # The first ones meet a room that is still starting; the tick of 20 s alone would never be this quick.
        assert sorted(took_s)[3] < 4, took_s
    assert await db["leases"].find_one({"_id": "scheduler", "owner": None}) is not None


async def is_placed(db: Database, job_id: str) -> bool:
    return await db["jobs"].find_one({"_id": job_id, "phase": "placed"}, {"_id": 1}) is not None
