"""Topics, and reading and writing them by partition and offset: what the journal needs beneath FastStream."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAlreadyExistsError, UnknownTopicOrPartitionError
from aiokafka.structs import TopicPartition

from luthier_common.contract.topics import ALL_TOPICS, MAX_MESSAGE_BYTES, Topic
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.kafka_access import OPEN, KafkaAccess, why_refused

log = logging.getLogger(__name__)
REQUEST_TIMEOUT_MS = 5000
FETCH_WAIT_MS = 50
Part: TypeAlias = TopicPartition


@dataclass(frozen=True)
class Copies:
    """How safely a topic is kept: the broker's own defaults where -1 and None."""

    replication: int = -1
    min_insync: int | None = None


BY_DEFAULT = Copies()


@dataclass(frozen=True)
class Message:
    """A record as it goes out."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Record:
    """A record as it came in."""

    offset: int
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


async def ensure_topics(
    url: str, access: KafkaAccess = OPEN, *, copies: Copies = BY_DEFAULT, topics: Sequence[Topic] = ALL_TOPICS
) -> None:
    """Create topics where they are missing, and the partitions that a topic made by someone else lacks.

    A broker that makes topics by itself gives them its own number: what belongs on the others could never be told.
    `copies` of a topic that is there already stay as they are.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=url, request_timeout_ms=REQUEST_TIMEOUT_MS, **access.options())
    try:
        await asyncio.wait_for(admin.start(), 10)
    except (TimeoutError, KafkaError, OSError) as error:
        await asyncio.wait_for(admin.close(), 3)
        raise await _silence(url, access) from error
    try:
        described = await asyncio.wait_for(admin.describe_topics(), 10)
        known = {topic["topic"]: len(topic["partitions"]) for topic in described}
        for topic in topics:
            if topic.name not in known:
                with suppress(TopicAlreadyExistsError):
                    await _create_topic(admin, topic, copies)
            elif known[topic.name] < topic.num_partitions:
                log.warning("the topic %s has too few partitions: adding what it lacks", topic.name)
                grown = {topic.name: NewPartitions(topic.num_partitions)}
                try:
                    await asyncio.wait_for(admin.create_partitions(grown), 10)
                except KafkaError as error:
                    raise TransientError(f"topic {topic.name} could not be given more partitions") from error
            await failpoint("migrate.mid_topics")
    finally:
        await asyncio.wait_for(admin.close(), 3)


async def _silence(url: str, access: KafkaAccess) -> TransientError:
    """That a client could not start, and why."""
    return TransientError(f"the broker does not answer: {await why_refused(url, access) or 'it was slow'}")


async def _create_topic(admin: AIOKafkaAdminClient, topic: Topic, copies: Copies) -> None:
    configs = {
        "retention.ms": str(topic.retention_ms),
        "cleanup.policy": "delete",
        "max.message.bytes": str(topic.max_message_bytes),
    }
    if copies.min_insync is not None:
        configs["min.insync.replicas"] = str(copies.min_insync)
    by_default: dict[int, list[int]] | None = {} if copies.replication == -1 else None
    new = NewTopic(topic.name, topic.num_partitions, copies.replication, by_default, configs)
    response = await asyncio.wait_for(admin.create_topics([new]), 10)
    for name, code, *rest in response.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise TransientError(f"topic {name} could not be created: error {code} {rest}")


class Writer:
    """Sends batches to an explicit partition and knows each record's offset.

    A producer with which a send failed gives way to a new one as soon as that has connected. Sends to other partitions
    are not disturbed: they go on with the old one until then, and the last of them stops it.

    So does one whose log begins anew: the embedded broker, when it comes back empty, takes what it is sent for topics
    that it does not have, and forgets it when they are made.

    No idempotent producer: on a dead broker it can hang for ever, and the event id already dedupes.
    """

    def __init__(self, url: str, access: KafkaAccess = OPEN, *, copies: Copies = BY_DEFAULT) -> None:
        """`copies` for topics that are missing when it connects: a broker that lost everything has none."""
        self._url = url
        self._access = access
        self._copies = copies
        self._producer: AIOKafkaProducer | None = None
        self._num_sends: Counter[AIOKafkaProducer] = Counter()
        self._ends: dict[Part, int] = {}
        self._connecting = asyncio.Lock()

    async def send(self, topic: str, partition: int, messages: Sequence[Message]) -> list[int]:
        """Offsets of all messages, in order. Raises TransientError when it is not known that they were stored."""
        producer = await self._connected()
        self._num_sends[producer] += 1
        part, offsets = Part(topic, partition), list[int]()
        end = self._ends.get(part, 0)
        try:
            for batch, size in self._batches(producer, messages):
                future = await asyncio.wait_for(producer.send_batch(batch, topic, partition=partition), 6)
                stored = await asyncio.wait_for(future, 6)
                if stored.offset < end:
                    raise UnknownTopicOrPartitionError
                offsets += range(stored.offset, stored.offset + size)
        except (TimeoutError, KafkaError, OSError, AssertionError) as error:
            await self._replace(producer)
            raise TransientError(f"the broker did not store the batch: {type(error).__name__}") from error
        finally:
            self._num_sends[producer] -= 1
            if not self._num_sends[producer]:
                del self._num_sends[producer]
                if producer is not self._producer:
                    await _stop(producer)
        if offsets:
            self._ends[part] = offsets[-1] + 1
        return offsets

    @staticmethod
    def _batches(producer: AIOKafkaProducer, messages: Sequence[Message]) -> list[tuple[object, int]]:
        done: list[tuple[object, int]] = []
        batch, size = producer.create_batch(), 0
        for message in messages:
            if batch.append(key=message.key, value=message.value, timestamp=None, headers=message.headers) is None:
                done.append((batch, size))
                batch, size = producer.create_batch(), 0
                if batch.append(key=message.key, value=message.value, timestamp=None, headers=message.headers) is None:
                    raise ValueError("a message is larger than a batch")
            size += 1
        return [*done, (batch, size)] if size else done

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._connecting:  # several partitions ask at once: a second producer would never be closed
            if self._producer is None:
                self._producer = await self._connect()
            return self._producer

    async def _replace(self, producer: AIOKafkaProducer) -> None:
        """Where no other one can connect, this one may still reach the brokers of other partitions: it stays."""
        async with self._connecting:
            if producer is self._producer:
                with suppress(TransientError):
                    self._producer = await self._connect()
                    self._ends.clear()

    async def _connect(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._url,
            acks="all",
            enable_idempotence=False,
            linger_ms=0,
            max_batch_size=MAX_MESSAGE_BYTES - 1024,
            max_request_size=MAX_MESSAGE_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            client_id="luthier-relay",
            **self._access.options(),
        )
        try:
            await asyncio.wait_for(producer.start(), 6)
            await ensure_topics(self._url, self._access, copies=self._copies)
        except (TimeoutError, KafkaError, OSError, TransientError) as error:
            await _stop(producer)
            raise await _silence(self._url, self._access) from error
        return producer

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """A consumer whose broker is lost ends its `stop` in the cancellation of its own fetch, with its client open."""
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait({stopping}, timeout=3)
        if stopping.cancelled():
            await asyncio.wait_for(client._client.close(), 3)
        elif stopping.done():
            await stopping
    except (TimeoutError, KafkaError, OSError) as error:
        log.debug("a client did not stop: %s", type(error).__name__)
    finally:
        stopping.cancel()


class Reader:
    """Reads chosen partitions from chosen offsets, without a group."""

    def __init__(self, url: str, access: KafkaAccess = OPEN, *, fetch_wait_ms: int = FETCH_WAIT_MS) -> None:
        self._url = url
        self._access = access
        self._fetch_wait_ms = fetch_wait_ms
        self._consumer: AIOKafkaConsumer | None = None

    async def seek(self, offsets: dict[Part, int]) -> None:
        """Read exactly these partitions from here on. Raises TransientError when the broker is away."""
        await self.close()
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._url,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=self._fetch_wait_ms,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            client_id="luthier-journal",
            **self._access.options(),
        )
        try:
            await asyncio.wait_for(consumer.start(), 6)
        except (TimeoutError, KafkaError, OSError) as error:
            await _stop(consumer)
            raise await _silence(self._url, self._access) from error
        consumer.assign(list(offsets))
        for part, offset in offsets.items():
            consumer.seek(part, offset)
        self._consumer = consumer

    async def read(self, *, wait_ms: int, max_records: int = 500) -> tuple[dict[Part, list[Record]], set[Part]]:
        """What arrived, and the partitions whose log no longer holds the position (they must be sought anew)."""
        if self._consumer is None:
            raise TransientError("not assigned")
        try:
            batches = await asyncio.wait_for(
                self._consumer.getmany(timeout_ms=wait_ms, max_records=max_records), wait_ms / 1000 + 6
            )
        except OffsetOutOfRangeError as error:
            return {}, set(error.args[0])
        except (TimeoutError, KafkaError, OSError) as error:
            await self.close()
            raise TransientError(f"the broker does not answer: {type(error).__name__}") from error
        got = {
            part: [Record(m.offset, m.value or b"", tuple(m.headers)) for m in messages]
            for part, messages in batches.items()
        }
        return got, set()

    def log_end(self, part: Part) -> tuple[int, int] | None:
        """The high watermark that the last fetch returned, and when (ms); None before the first fetch."""
        if self._consumer is None or part not in self._consumer.assignment():
            return None
        mark = self._consumer.highwater(part)
        return None if mark is None else (mark, self._consumer.last_poll_timestamp(part))

    async def bounds(self, parts: Sequence[Part]) -> dict[Part, tuple[int, int]]:
        """The first offset that each log still holds, and the one that its next record will get."""
        if self._consumer is None:
            raise TransientError("not assigned")
        try:
            starts = await asyncio.wait_for(self._consumer.beginning_offsets(parts), 6)
            ends = await asyncio.wait_for(self._consumer.end_offsets(parts), 6)
        except (TimeoutError, KafkaError, OSError) as error:
            raise TransientError("the broker does not answer") from error
        return {part: (int(starts[part]), int(ends[part])) for part in parts}

    async def position(self, part: Part) -> int:
        """The offset that is read next."""
        if self._consumer is None:
            raise TransientError("not assigned")
        return int(await self._consumer.position(part))

    async def log_start(self, part: Part) -> int:
        """The first offset that the log still holds."""
        if self._consumer is None:
            raise TransientError("not assigned")
        try:
            starts = await asyncio.wait_for(self._consumer.beginning_offsets([part]), 6)
        except (TimeoutError, KafkaError, OSError) as error:
            raise TransientError("the broker does not answer") from error
        return int(starts[part])

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _stop(consumer)
