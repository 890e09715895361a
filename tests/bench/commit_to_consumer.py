"""From a commit to a consumer's handler, and to the event list that a user reads, at 100 commits a second.

A job is created through the journal; the API process relays and projects; a room's way of hearing (`kit.broker.hear`)
calls the handler. Every tenth job's event list is asked for until it shows the event. Beside it stands the least that
any such chain needs: an insert, a change stream, one send per event, one consumer; the two take turns. The gate for p99
is 50 ms, the aim 15 ms, and 2.5 times the least chain.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

from _bench import database_of, report, report_spread, run, stack_of
from _load import Client
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from builders.jobs import JobStory
from luthier_common.contract.envelope import Envelope
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.broker import HEAR_WAIT_MS, build_broker, hear, listening
from luthier_common.kit.mongo import Database
from luthier_stack.stack import Stack

RATE = 100.0
OURS_S = 20.0
LEAST_S = 6.0
LISTED_EVERY = 10
DRAIN_S = 10.0
TOPIC = "bench.least"


class Chain:
    """When each thing was committed and when it was heard, by id; on one clock."""

    def __init__(self) -> None:
        self.committed_at: dict[str, float] = {}
        self.heard_at: dict[str, float] = {}

    def hear(self, thing: str) -> None:
        self.heard_at.setdefault(thing, time.perf_counter())

    async def drained(self) -> None:
        deadline = time.perf_counter() + DRAIN_S
        while self.committed_at.keys() - self.heard_at.keys():
            if time.perf_counter() > deadline:
                raise SystemExit(f"{len(self.committed_at.keys() - self.heard_at.keys())} commits were never heard")
            await asyncio.sleep(0.02)

    @property
    def latencies_ms(self) -> list[float]:
        return [(self.heard_at[thing] - at) * 1000 for thing, at in self.committed_at.items()]


async def measure() -> None:
    listed: list[float] = []
    async with stack_of(["api"]) as stack, database_of(stack) as db:
        least = await _least(stack, db)
        ours = await _ours(stack, db, listed)
        least += await _least(stack, db)
    report("commit_to_consumer.commits", len(ours), "1")
    report_spread("commit_to_consumer.handler", ours, "ms", least)
    report_spread("commit_to_consumer.event_list", listed, "ms", least)


async def _ours(stack: Stack, db: Database, listed: list[float]) -> list[float]:
    chain = Chain()

    async def on_fact(envelope: Envelope) -> None:
        chain.hear(envelope.thing)

    broker = build_broker(stack.env["LUTHIER_KAFKA_URL"], "bench")
    hear(broker, [TOPICS[Kind.JOB]], on_fact)
    lists: list[asyncio.Task[None]] = []

    async def commit(number: int) -> None:
        story = await JobStory.created(db)
        if number < 0:
            return
        chain.committed_at[story.id] = time.perf_counter()
        if number % LISTED_EVERY == 0:
            lists.append(asyncio.create_task(_listed(stack, story.id, listed)))

    async with listening(broker):
        await _until_heard(lambda: commit(-1), lambda: bool(chain.heard_at))
        await _steadily(commit, OURS_S)
        await chain.drained()
    await asyncio.gather(*lists)
    return chain.latencies_ms


async def _listed(stack: Stack, job_id: str, latencies: list[float]) -> None:
    """Ask until the list holds the event; the connection is made before the clock counts."""
    committed_at = time.perf_counter()
    client = await Client.connect(stack.port, stack.admin_key)
    while not json.loads(await client.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=1"))["data"]:
        if time.perf_counter() - committed_at > DRAIN_S:
            raise SystemExit(f"the event of {job_id} was never listed")
        await asyncio.sleep(0.01)
    latencies.append((time.perf_counter() - committed_at) * 1000)
    client.close()


async def _least(stack: Stack, db: Database) -> list[float]:
    chain = Chain()

    async def commit(number: int) -> None:
        inserted = await db["bench_least"].insert_one({"number": number, "at": time.time()})
        if number >= 0:
            chain.committed_at[str(inserted.inserted_id)] = time.perf_counter()

    async with _least_chain(stack.env["LUTHIER_KAFKA_URL"], db, chain):
        await _until_heard(lambda: commit(-1), lambda: bool(chain.heard_at))
        await _steadily(commit, LEAST_S)
        await chain.drained()
    return chain.latencies_ms


@asynccontextmanager
async def _least_chain(url: str, db: Database, chain: Chain) -> AsyncIterator[None]:
    """A change stream that sends each insert at once, and a consumer that notes it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=url)
    await admin.start()
    if TOPIC not in await admin.list_topics():
        await admin.create_topics([NewTopic(TOPIC, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=url, acks="all", linger_ms=0, enable_idempotence=False)
    consumer = AIOKafkaConsumer(bootstrap_servers=url, auto_offset_reset="latest", fetch_max_wait_ms=HEAR_WAIT_MS)
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(TOPIC, 0)])
    await consumer.seek_to_end()

    async def relay() -> None:
        async with db["bench_least"].watch([{"$match": {"operationType": "insert"}}], max_await_time_ms=1000) as stream:
            async for change in stream:
                await producer.send_and_wait(TOPIC, str(change["documentKey"]["_id"]).encode())

    async def consume() -> None:
        async for message in consumer:
            chain.hear((message.value or b"").decode())

    tasks = [asyncio.create_task(relay()), asyncio.create_task(consume())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await consumer.stop()
        await producer.stop()


async def _until_heard(commit: Callable[[], Coroutine[None, None, None]], is_heard: Callable[[], bool]) -> None:
    """Both ends are connected once something comes through; what was committed before does not count."""
    deadline = time.perf_counter() + 2 * DRAIN_S
    while not is_heard():
        if time.perf_counter() > deadline:
            raise SystemExit("nothing is heard")
        await commit()
        await asyncio.sleep(0.2)


async def _steadily(commit: Callable[[int], Coroutine[None, None, None]], seconds: float) -> None:
    began_at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * seconds)):
            await asyncio.sleep(max(0.0, began_at + number / RATE - time.perf_counter()))
            group.create_task(commit(number))


if __name__ == "__main__":
    run(measure)
