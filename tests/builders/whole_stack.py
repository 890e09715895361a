"""An embedded stack after its users and faults, looked at as it will be once its sweepers have come."""

import asyncio
import os
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from openai import AsyncOpenAI

from builders.invariants import broken_invariants
from builders.leftovers import stray_processes
from builders.topic_records import read_topics
from builders.workshop import FINAL
from luthier_common.kit import ledger
from luthier_common.kit.mongo import OUTAGES, Database
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_stack.stack import Stack

CLEARED_WITHIN_S = 45.0
LOOK_EVERY_S = 2.0
PASSING: tuple[type[Exception], ...] = (*OUTAGES, OSError, AssertionError)
"""What may stand in the way of a look: a server that is still coming back."""
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def broken_stack(
    stack: Stack, db: Database, *, acknowledged: Collection[str], is_log_whole: bool = False
) -> list[str]:
    """Every invariant that can be looked at: documents, topics, objects, home, processes, and what users see."""
    async with (
        open_objects(stack.env["LUTHIER_OBJECTS_URL"]) as objects,
        AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key, timeout=20.0) as api,
    ):
        if not await db["jobs"].find_one({"status": {"$nin": list(FINAL)}}, {"_id": 1}):
            await sweep_at_once(db, objects)
        return await broken_invariants(
            db,
            events_of_topic=await read_topics(stack.env["LUTHIER_KAFKA_URL"]),
            objects=objects,
            api=api,
            home=stack.home,
            acknowledged=acknowledged,
            all_ended=True,
            is_log_whole=is_log_whole,
        ) + stray_processes(stack.home, os.getpid())


async def broken_in_the_end(
    stack: Stack,
    db: Database,
    *,
    acknowledged: Collection[str],
    is_log_whole: bool = False,
    within_s: float = CLEARED_WITHIN_S,
) -> list[str]:
    """What is broken, and still is after the rooms had time to clear up; also that nobody could look."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            broken = await broken_stack(stack, db, acknowledged=acknowledged, is_log_whole=is_log_whole)
        except PASSING as error:
            broken = [f"the check could not be made: {type(error).__name__}: {error}"]
        if not broken or time.monotonic() > deadline:
            return broken
        await asyncio.sleep(LOOK_EVERY_S)


async def sweep_at_once(db: Database, objects: ObjectStore) -> None:
    """What the sweepers do, without their patience: no writer is left that could still be on its way."""
    await db[ledger.COLLECTION].update_many({"intent_until": {"$type": "date"}}, {"$set": {"intent_until": LONG_AGO}})
    while await ledger.sweep(db, objects, older_than_s=0):
        pass
    await objects.sweep(timedelta(0))
