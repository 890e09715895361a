"""Whatever meets whatever: one job's life under every room at once, held against a model; 10,000 histories in full."""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from builders.lifecycle_histories import History, run_histories
from builders.scale import scaled
from builders.waiting import until
from luthier_common.journal.auditor import audit
from luthier_common.journal.projector import Projector, run_projector
from luthier_common.journal.relay import Relay, run_relay
from luthier_common.journal.wake import Wake, wake_on_change
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, open_mongo
from luthier_common.kit.stream import Reader, Writer, ensure_topics

NUM_HISTORIES = scaled(80, 10_000)
NUM_TOLD = scaled(20, 1_000)


@pytest.fixture
async def db(mongo_url: str, database_name: str) -> AsyncIterator[Database]:
    async with open_mongo(mongo_url, database_name) as database:
        await migrate(database)
        yield database


@pytest.fixture
def seed() -> str:
    """LUTHIER_PROOF_SEED replays; printed in any case."""
    chosen = os.environ.get("LUTHIER_PROOF_SEED") or str(random.randrange(10**6))
    print(f"seed {chosen}")
    return chosen


def show(histories: list[History]) -> None:
    ends = Counter(history.model.phase for history in histories)
    facts = Counter(fact[1] for history in histories for fact in history.model.told)
    print(f"{len(histories)} histories; answers {dict(answers_of(histories))}; ended {dict(ends)}; told {dict(facts)}")


def answers_of(histories: list[History]) -> Counter[str]:
    return sum((history.answers for history in histories), Counter())


@pytest.mark.timeout(5400)
async def test_any_history_leads_where_the_rules_say(db: Database, seed: str) -> None:
    histories = await run_histories(db, seed, range(NUM_HISTORIES))
    show(histories)
    told = {fact[1] for history in histories for fact in history.model.told}
    assert told >= {"ModelRegistered", "JobFailed", "JobCancelled", "JobPaused", "RunLost"}
    answers = answers_of(histories)
    for word in ("stale", "illegal", "duplicate", "thrown away", "lost inside"):
        assert answers[word] >= NUM_HISTORIES // 2, f"{word} was hardly tried: {answers}"


@asynccontextmanager
async def journal(db: Database, url: str, owner: str) -> AsyncIterator[None]:
    """A relay and a projector as one api process runs them; at the end they are killed and give nothing back."""
    clock, wake, stopping = SystemClock(), Wake(), asyncio.Event()
    writer, reader = Writer(url), Reader(url)
    source = f"luthier/{db.name}/1"
    relay = Relay(db, writer, owner=owner, source=source, clock=clock)
    projector = Projector(db, reader, owner=owner, clock=clock, source=source, trimmed=relay.forget)
    tasks = [
        asyncio.create_task(run_relay(relay, wake, stopping, lambda: None)),
        asyncio.create_task(run_projector(projector, stopping, lambda: None)),
        asyncio.create_task(wake_on_change(db, wake)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError) and isinstance(ended, Exception):
                raise ended
        await writer.close()
        await reader.close()


@asynccontextmanager
async def killed_now_and_then(db: Database, url: str, name: str, dice: random.Random) -> AsyncIterator[None]:
    """A journal that dies at seeded instants; the next one has another name, so it must wait for the leases."""

    async def live() -> None:
        for life in range(1000):
            async with journal(db, url, f"{name}-{life}"):
                await asyncio.sleep(dice.uniform(1.0, 6.0))

    living = asyncio.create_task(live())
    try:
        yield
    finally:
        living.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await living


async def assert_told(db: Database, histories: list[History]) -> None:
    async def emptied() -> bool:
        return await db["jobs"].find_one({"pend": True}, {"_id": 1}) is None

    await until(emptied, within_s=240, every_s=0.2, what="empty outboxes")
    for history in histories:
        doc = await db["jobs"].find_one({"_id": history.job_id})
        assert doc is not None
        assert doc["outbox"] == []
        assert await history.told(doc) == history.model.told, history.name
    assert await audit(db, older_than_s=0) == []


@pytest.mark.timeout(5400)
async def test_relays_and_projectors_that_die_and_take_over_tell_each_history(
    db: Database, kafka_url: str, seed: str
) -> None:
    await ensure_topics(kafka_url)
    dice = random.Random(seed)
    async with killed_now_and_then(db, kafka_url, "one", dice), killed_now_and_then(db, kafka_url, "two", dice):
        histories = await run_histories(db, seed, range(NUM_TOLD))
        show(histories)
        await assert_told(db, histories)


@pytest.mark.timeout(5400)
async def test_two_relays_and_two_projectors_on_the_same_things_leave_no_gap_and_no_double(
    db: Database, kafka_url: str, seed: str
) -> None:
    """Both hold every lease, as one that was stopped and does not know yet that it lost them."""
    await ensure_topics(kafka_url)
    async with journal(db, kafka_url, "same"), journal(db, kafka_url, "same"):
        histories = await run_histories(db, seed, range(NUM_TOLD))
        show(histories)
        await assert_told(db, histories)
