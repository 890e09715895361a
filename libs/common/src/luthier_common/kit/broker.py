"""How rooms hear facts: FastStream over Kafka, with dead letters and bounded retries.

Delivery is at least once and correctness never rests on it: the outbox is the truth, a message only wakes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka import Topic as StreamTopic
from faststream.kafka import TopicPartition as StreamPartition
from faststream.kafka.annotations import KafkaMessage

from luthier_common.contract.envelope import Envelope, read_envelope
from luthier_common.contract.events import FACTS
from luthier_common.contract.topics import DEAD_LETTERS, Topic
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.kafka_access import OPEN, KafkaAccess, why_refused
from luthier_common.kit.mongo import is_outage
from luthier_common.kit.stream import REQUEST_TIMEOUT_MS
from luthier_common.kit.telemetry import meter, span_of, use_traceparent

log = logging.getLogger(__name__)
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
HEAR_WAIT_MS = 20
"""Kafka answers a fetch as soon as something arrives; the embedded broker looks again after half of what is left."""
_BULK = frozenset(name for name, shape in FACTS.items() if shape.bulk)
_num_buried = meter().create_counter("luthier.dead_letters", "{message}", "Messages that could not be handled")

OnFact = Callable[[Envelope], Awaitable[None]]


class RoomBroker(KafkaBroker):
    """FastStream's broker, which can also say in words why Kafka does not take it in."""

    def __init__(self, url: str, access: KafkaAccess, **options: Any) -> None:
        # aiokafka takes several servers in one text; FastStream would take them for the name of one.
        super().__init__(url.split(","), security=access.security(), **options)
        self._url = url
        self._access = access

    async def why_refused(self) -> str | None:
        return await why_refused(self._url, self._access)


def build_broker(url: str, room: str, access: KafkaAccess = OPEN) -> RoomBroker:
    """The one construction of a FastStream broker: durable sends, no idempotent producer, one worker a partition."""
    return RoomBroker(
        url,
        access,
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
    for topic in topics:
        _num_buried.add(0, {"topic": topic.name})
    # Topics are never declared: FastStream would create a missing one with a single partition.
    handler = _handler(broker, on_fact)
    if group is None:
        parts = [StreamPartition(topic.name, n, declare=False) for topic in topics for n in range(topic.num_partitions)]
        subscriber = broker.subscriber(
            partitions=parts,
            auto_offset_reset="latest",
            ack_policy=AckPolicy.MANUAL,
            fetch_max_wait_ms=HEAR_WAIT_MS,
        )
        subscriber(handler)
        return
    for topic in topics:
        in_group = broker.subscriber(
            StreamTopic(topic.name, declare=False),
            group_id=group,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            max_workers=1,
            fetch_max_wait_ms=HEAR_WAIT_MS,
            session_timeout_ms=6000,
            heartbeat_interval_ms=2000,
        )
        in_group(handler)


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
            with _heard(envelope):
                await _handle_patiently(on_fact, envelope)
        except Exception as error:
            if is_outage(error):
                raise
            log.exception("a fact could not be handled", extra={"fact": envelope.id})
            await _bury(broker, message, error)

    return handle


def _heard(envelope: Envelope) -> AbstractContextManager[object]:
    """A span for each fact, in the trace of what caused it. Steps are metrics: they get none."""
    if envelope.type in _BULK:
        return use_traceparent(envelope.trace)
    named = {f"{envelope.kind}.id": envelope.thing, "fact": envelope.id}
    return span_of(f"hear {envelope.type}", envelope.trace, named)


async def _handle_patiently(on_fact: OnFact, envelope: Envelope) -> None:
    for delay_s in RETRY_DELAYS_S:
        try:
            await failpoint("broker.before_handle")
            await on_fact(envelope)
        except Exception as error:
            if not is_outage(error):
                raise
            await asyncio.sleep(delay_s)
        else:
            return
    await on_fact(envelope)


async def _bury(broker: KafkaBroker, message: KafkaMessage, error: Exception) -> None:
    """Keep the message with its cause. The cause names the error's class, never the message's content."""
    raw: Any = message.raw_message
    _num_buried.add(1, {"topic": raw.topic})
    headers = {name: value.decode("utf-8", "replace") for name, value in raw.headers}
    headers |= {"x-error": type(error).__name__, "x-origin": f"{raw.topic}/{raw.partition}/{raw.offset}"}
    await broker.publish(message.body, DEAD_LETTERS.name, key=raw.key, headers=headers)


@asynccontextmanager
async def listening(broker: RoomBroker) -> AsyncIterator[None]:
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


async def _keep_listening(broker: RoomBroker) -> None:
    told = ""
    while why := await _why_not_started(broker):
        (log.debug if why == told else log.warning)("the broker does not answer yet: %s", why)
        told = why
        await asyncio.sleep(1)
    while True:
        await asyncio.sleep(1)
        for subscriber in broker.subscribers:
            consumer: AIOKafkaConsumer | None = getattr(subscriber, "consumer", None)
            if consumer is not None:
                await _follow_shrunk_log(consumer)


async def _why_not_started(broker: RoomBroker) -> str | None:
    """Start it; what is in the way, if it cannot be. Asked first: FastStream never closes a client that failed."""
    if why := await broker.why_refused():
        return why
    try:
        await broker.start()
    except (KafkaError, OSError) as error:
        with suppress(KafkaError, OSError):
            await broker.stop()
        return type(error).__name__
    return None


async def _follow_shrunk_log(consumer: AIOKafkaConsumer) -> None:
    """After a broker lost its log, positions lie behind the end and nothing would be heard until it has regrown."""
    for part in consumer.assignment():
        mark = consumer.highwater(part)
        with suppress(KafkaError, TimeoutError, OSError):
            if mark is not None and await asyncio.wait_for(consumer.position(part), 1) > mark:
                consumer.seek(part, 0)
