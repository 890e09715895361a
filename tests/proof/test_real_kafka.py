"""On a real Kafka: brokers die, leaders change, groups move, consumers sleep, and list, topics and histories stay one.

Journals, group members and the example consumer are processes of their own; facts flow while the fault happens.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from builders.group_member import HEARD
from builders.journal_ground import JournalGround
from builders.real_kafka import RealKafka
from builders.scale import FULL, scaled
from builders.topic_records import out_of_order, read_topics
from builders.waiting import until
from luthier_common.contract.topics import TOPICS, Kind, partition_of
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, open_mongo
from luthier_common.kit.stream import BY_DEFAULT, Copies, ensure_topics
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

NUM_JOBS = scaled(10, 20)
PER_SECOND = scaled(80, 180)
BEFORE_S, AFTER_S = scaled(1, 10), scaled(1, 20)
STALLED_AFTER_S = 30.0
UNDISTURBED_S = 5.0
"""A send to a partition without a leader is given up only after this."""
PAST_ALL_LEASES_S = 9.0
"""Longer than the session of a group's member (6 s) and the leases of projector (5 s) and relay (3 s)."""


@pytest.fixture
async def db(mongo_url: str, database_name: str) -> AsyncIterator[Database]:
    async with open_mongo(mongo_url, database_name) as database:
        await migrate(database)
        yield database


@dataclass
class Scene:
    ground: JournalGround
    db: Database
    kafka: RealKafka | None = None


Happening = Callable[[Scene], Awaitable[None]]


async def broker_killed_and_restarted(scene: Scene) -> None:
    assert scene.kafka is not None
    scene.kafka.kill()
    await scene.kafka.start()


async def leader_killed(scene: Scene) -> None:
    assert scene.kafka is not None
    leader, num_copies = await first_partition(scene.kafka.url)
    assert num_copies == 3
    scene.kafka.kill(leader)
    await asyncio.sleep(scaled(8, 15))  # facts flow over the two that are left


async def only_copy_of_some_partitions_away(scene: Scene) -> None:
    """Facts of jobs on the other partitions are listed as if nothing had happened."""
    assert scene.kafka is not None
    leader, num_copies = await first_partition(scene.kafka.url)
    assert num_copies == 1
    away = await led_by(scene.kafka.url, leader)
    others = [story for story in scene.ground.stories if partition_of(Kind.JOB, story.id) not in away]
    scene.kafka.kill(leader)
    began_at_s = time.monotonic()
    while time.monotonic() - began_at_s < scaled(10, 15):
        for story in others:
            wanted = f"job/{story.id}/{(await story.doc())['seq']}"
            await until(lambda wanted=wanted: is_listed(scene.db, wanted), within_s=UNDISTURBED_S, what=wanted)  # type: ignore[misc]
        await asyncio.sleep(0.2)
    await scene.kafka.start(only=leader)


async def group_and_leases_moved(scene: Scene) -> None:
    ground = scene.ground
    await ground.start_member("second")
    await until(lambda: has_heard(scene.db, "second"), within_s=30, what="the second member's first fact")
    await ground.start_journal("journal-2")
    await ground.stop("journal-1", signal.SIGKILL)
    await until(lambda: holds_all(scene.db, "journal-2"), within_s=30, what="all leases with the second journal")
    await ground.stop("first")


async def consumers_stopped_past_their_session(scene: Scene) -> None:
    ground = scene.ground
    await ground.start_member("second")
    await ground.start_journal("journal-2")
    await until(lambda: has_heard(scene.db, "second"), within_s=30, what="the second member's first fact")
    for name in ("first", "journal-1"):
        ground.signal(name, signal.SIGSTOP)
    await asyncio.sleep(PAST_ALL_LEASES_S)
    for name in ("first", "journal-1"):
        ground.signal(name, signal.SIGCONT)


@dataclass
class Fault:
    happen: Happening
    num_brokers: int = 1
    copies: Copies = BY_DEFAULT
    is_sampled: bool = False


FAULTS = [
    Fault(broker_killed_and_restarted, is_sampled=True),
    Fault(leader_killed, num_brokers=3, copies=Copies(3, 2)),
    Fault(only_copy_of_some_partitions_away, num_brokers=3, copies=Copies(1, 1)),
    Fault(group_and_leases_moved),
    Fault(consumers_stopped_past_their_session),
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", [f for f in FAULTS if FULL or f.is_sampled], ids=lambda f: f.happen.__name__)
async def test_list_topics_and_histories_stay_one(fault: Fault, db: Database, mongo_url: str, tmp_path: Path) -> None:
    async with RealKafka(tmp_path, num_brokers=fault.num_brokers) as kafka:
        await ensure_topics(kafka.url, copies=fault.copies)
        async with JournalGround(db, mongo_url, kafka.url, tmp_path).open() as ground:
            scene = Scene(ground, db, kafka)
            await start(ground)
            took_s, num_told = await facts_through(scene, fault)
            drained_s = await ground.drained()
            print(f"{fault.happen.__name__}: {num_told} facts, fault {took_s:.1f} s, drained after {drained_s:.1f} s")
            await ground.equal_to_the_topics()
            assert out_of_order(await read_topics(kafka.url)) == []
            await all_heard(ground)
            await ground.history_of("consumer")
            await ground.rebuilt_equally()
            await ground.start_consumer("late")
            await ground.history_of("late")


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[tuple[str, Happening]]:
    """The embedded broker has no log: killed, it comes back empty by itself."""

    async def lose(_: Scene) -> None:
        stack.kill("tansu", signal.SIGKILL)
        await stack.wait_ready("tansu")

    settings = StackSettings(home=folder / "tansu", services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack:
        yield stack.env["LUTHIER_KAFKA_URL"], lose


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[tuple[str, Happening]]:
    async def lose(_: Scene) -> None:
        kafka.kill()
        await kafka.start_empty()

    async with RealKafka(folder) as kafka:
        yield kafka.url, lose


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker", [embedded, real] if FULL else [embedded], ids=lambda broker: broker.__name__)
async def test_a_topic_that_was_lost_is_filled_again_from_the_list(
    broker: Callable[[Path], AbstractAsyncContextManager[tuple[str, Happening]]],
    db: Database,
    mongo_url: str,
    tmp_path: Path,
) -> None:
    async with broker(tmp_path) as (url, lose), JournalGround(db, mongo_url, url, tmp_path).open() as ground:
        await ensure_topics(url)
        await start(ground)
        await facts_through(Scene(ground, db), Fault(lose))
        await ground.drained()
        status, said = await ground.events("verify")
        assert status == 1, said
        assert "missing on the topic" in said
        status, said = await ground.events("republish")
        assert status == 0, said
        await ground.equal_to_the_topics()
        status, said = await ground.events("republish")
        assert (status, said.count(" 0 facts told again")) == (0, len(TOPICS)), said
        await ground.start_consumer("late")
        await ground.history_of("late")
        await ground.history_of("consumer")
        await ground.rebuilt_equally()


async def start(ground: JournalGround) -> None:
    await ground.start_journal("journal-1")
    await ground.start_member("first")
    await ground.start_consumer()
    await ground.begin(NUM_JOBS)


async def facts_through(scene: Scene, fault: Fault) -> tuple[float, int]:
    """Facts flow before, while and after it happens; how long it took, and how many facts were accepted."""
    stop = asyncio.Event()
    telling = asyncio.create_task(scene.ground.tell_steps(per_second=PER_SECOND, stop=stop))
    try:
        await until(lambda: are_listed(scene.db, NUM_JOBS * 10), within_s=60, what="the first facts in the list")
        await asyncio.sleep(BEFORE_S)
        started_at_s = time.monotonic()
        await fault.happen(scene)
        took_s = time.monotonic() - started_at_s
        await asyncio.sleep(AFTER_S)
    finally:
        stop.set()
        num_told = await telling
    return took_s, num_told


async def are_listed(db: Database, num_rows: int) -> bool:
    return await db["events"].count_documents({}) >= num_rows


async def is_listed(db: Database, fact: str) -> bool:
    return await db["events"].find_one({"_id": fact}, {"_id": 1}) is not None


async def has_heard(db: Database, member: str) -> bool:
    return await db[HEARD].find_one({"members": member}) is not None


async def holds_all(db: Database, owner: str) -> bool:
    num_parts = sum(topic.num_partitions for topic in TOPICS.values())
    return await db["positions"].count_documents({"owner": owner}) == num_parts


async def all_heard(ground: JournalGround) -> None:
    """A group hears each fact at least once, whoever came, left or slept. It is waited for while it goes on hearing."""
    wanted = {f"job/{job}/{seq}" for job, seq, _ in await ground.listed()}
    missing, moved_at_s = len(wanted), time.monotonic()
    while missing:
        heard = {row["_id"] async for row in ground.db[HEARD].find({}, {"_id": 1})}
        if len(wanted - heard) < missing:
            missing, moved_at_s = len(wanted - heard), time.monotonic()
        assert time.monotonic() - moved_at_s < STALLED_AFTER_S, f"{missing} facts of {len(wanted)} were not heard"
        await asyncio.sleep(0.2)


async def first_partition(url: str) -> tuple[int, int]:
    """The number of the broker that leads the first partition of the jobs' topic, and how many copies it has."""
    [part] = [part for part in await partitions(url) if part["partition"] == 0]
    return part["leader"] - 1, len(part["replicas"])


async def led_by(url: str, broker: int) -> set[int]:
    """The partitions of the jobs' topic that this broker leads."""
    return {part["partition"] for part in await partitions(url) if part["leader"] - 1 == broker}


async def partitions(url: str) -> list[dict[str, Any]]:
    admin = AIOKafkaAdminClient(bootstrap_servers=url)
    await admin.start()
    try:
        [topic] = await admin.describe_topics([TOPICS[Kind.JOB].name])
    finally:
        await admin.close()
    return list(topic["partitions"])
