"""How rooms hear facts: FastStream over Kafka, with dead letters and bounded retries.

Delivery is at least once and correctness never rests on it: the outbox is the truth, a message only wakes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka import Topic as StreamTopic
from faststream.kafka import TopicPartition as StreamPartition
from faststream.kafka.annotations import KafkaMessage

from luthier_common.contract.envelope import Envelope, read_envelope
from luthier_common.contract.topics import DEAD_LETTERS, Topic
from luthier_common.kit.mongo import OUTAGES
from luthier_common.kit.stream import FETCH_WAIT_MS, REQUEST_TIMEOUT_MS
from luthier_common.kit.telemetry import use_traceparent

log = logging.getLogger(__name__)
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)

OnFact = Callable[[Envelope], Awaitable[None]]


def build_broker(url: str, room: str) -> KafkaBroker:
    """The one construction of a FastStream broker: durable sends, no idempotent producer, one worker a partition."""
    return KafkaBroker(
        url,
        client_id=f"luthier-{room}",
        acks="all",
        enable_idempotence=False,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        graceful_timeout=10,
        ack_policy=AckPolicy.NACK_ON_ERROR,
        logger=logging.getLogger("luthier_common.kit.faststream"),
        log_level=logging.DEBUG,
    )


def hear(broker: KafkaBroker, topics: Sequence[Topic], on_fact: OnFact, *, group: str | None = None) -> None:
    """Call `on_fact` for each fact of `topics`.

    Without a group the room is only woken: it reads all partitions from their ends and starts at once. With a group
    each message is acknowledged after `on_fact` returned; transient errors are retried with growing pauses and then
    delivered again; what cannot be read, or raises another error, goes to the dead letters and is acknowledged.
    """
    for topic in topics:  # never declared: FastStream would create a missing one with a single partition
        if group is None:
            parts = [StreamPartition(topic.name, number, declare=False) for number in range(topic.num_partitions)]
            subscriber = broker.subscriber(
                partitions=parts,
                auto_offset_reset="latest",
                ack_policy=AckPolicy.MANUAL,
                fetch_max_wait_ms=FETCH_WAIT_MS,
            )
        else:
            subscriber = broker.subscriber(
                StreamTopic(topic.name, declare=False),
                group_id=group,
                auto_offset_reset="earliest",
                ack_policy=AckPolicy.NACK_ON_ERROR,
                max_workers=1,
                fetch_max_wait_ms=FETCH_WAIT_MS,
                session_timeout_ms=6000,
                heartbeat_interval_ms=2000,
            )
        subscriber(_handler(broker, on_fact))


def _handler(broker: KafkaBroker, on_fact: OnFact) -> Callable[[KafkaMessage], Awaitable[None]]:
    async def handle(message: KafkaMessage) -> None:
        raw: Any = message.raw_message
        headers = list(raw.headers)
        try:
            envelope = read_envelope(message.body, headers)
        except ValueError as error:
            await _bury(broker, message, error)
            return
        try:
            with use_traceparent(envelope.trace):
                await _handle_patiently(on_fact, envelope)
        except OUTAGES:
            raise
        except Exception as error:
            log.exception("a fact could not be handled", extra={"fact": envelope.id})
            await _bury(broker, message, error)

    return handle


async def _handle_patiently(on_fact: OnFact, envelope: Envelope) -> None:
    for delay_s in RETRY_DELAYS_S:
        try:
            await on_fact(envelope)
        except OUTAGES:
            await asyncio.sleep(delay_s)
        else:
            return
    await on_fact(envelope)


async def _bury(broker: KafkaBroker, message: KafkaMessage, error: Exception) -> None:
    """Keep the message with its cause. The cause names the error's class, never the message's content."""
    raw: Any = message.raw_message
    headers = {name: value.decode("utf-8", "replace") for name, value in raw.headers}
    headers |= {"x-error": type(error).__name__, "x-origin": f"{raw.topic}/{raw.partition}/{raw.offset}"}
    await broker.publish(message.body, DEAD_LETTERS.name, key=raw.key, headers=headers)


@asynccontextmanager
async def listening(broker: KafkaBroker) -> AsyncIterator[None]:
    """Run the subscribers in the background. A broker that is away never keeps a room from starting."""
    task = asyncio.create_task(_keep_listening(broker))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        with suppress(TimeoutError, KafkaError, OSError):
            await asyncio.wait_for(broker.stop(), 3)


async def _keep_listening(broker: KafkaBroker) -> None:
    while True:
        try:
            await broker.start()
            break
        except (KafkaError, OSError) as error:
            log.info("the broker does not answer yet: %s", type(error).__name__)
            with suppress(KafkaError, OSError):
                await broker.stop()
            await asyncio.sleep(1)
    while True:
        await asyncio.sleep(1)
        for subscriber in broker.subscribers:
            consumer: AIOKafkaConsumer | None = getattr(subscriber, "consumer", None)
            if consumer is not None:
                await _follow_shrunk_log(consumer)


async def _follow_shrunk_log(consumer: AIOKafkaConsumer) -> None:
    """After a broker lost its log, positions lie behind the end and nothing would be heard until it has regrown."""
    for part in consumer.assignment():
        mark = consumer.highwater(part)
        with suppress(KafkaError, TimeoutError, OSError):
            if mark is not None and await asyncio.wait_for(consumer.position(part), 1) > mark:
                consumer.seek(part, 0)
