"""Topics are as the contract says, whoever made them first."""

import uuid

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from builders.waiting import until
from luthier_common.contract.topics import Topic
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.errors import TransientError
from luthier_common.kit.stream import Copies, ensure_topics


async def test_a_topic_that_was_made_with_fewer_partitions_gets_the_others(real_kafka_url: str) -> None:
    url = real_kafka_url
    topic = Topic(f"test.{uuid.uuid4().hex[:8]}", 3, "of a test")
    admin = AIOKafkaAdminClient(bootstrap_servers=url)
    await admin.start()
    await admin.create_topics([NewTopic(topic.name, 1, 1)])
    await admin.close()
    await ensure_topics(url, topics=[topic])
    producer = AIOKafkaProducer(bootstrap_servers=url, enable_idempotence=False)
    await producer.start()

    async def are_known() -> bool:
        """Brokers hear of new partitions a moment after the controller has made them."""
        await producer.client.force_metadata_update()
        return set(await producer.partitions_for(topic.name)) == {0, 1, 2}

    try:
        await until(are_known, what="all partitions")
    finally:
        await producer.stop()


async def test_a_topic_has_the_copies_that_were_asked_for_or_is_not_made(real_kafka_url: str) -> None:
    kept, refused = (Topic(f"test.{uuid.uuid4().hex[:8]}", 1, "of a test") for _ in range(2))
    await ensure_topics(real_kafka_url, copies=Copies(replication=1, min_insync=1), topics=[kept])
    with pytest.raises(TransientError, match=refused.name):
        await ensure_topics(real_kafka_url, copies=Copies(replication=3, min_insync=2), topics=[refused])
    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka_url)
    await admin.start()
    try:
        assert refused.name not in await admin.list_topics()
        wanted = ConfigResource(ConfigResourceType.TOPIC, kept.name, {"min.insync.replicas": None})

        async def is_known() -> bool:
            """Brokers hear of a new topic a moment after the controller has made it."""
            [response] = await admin.describe_configs([wanted])
            return [entry[:2] for entry in response.resources[0][4]] == [("min.insync.replicas", "1")]

        await until(is_known, what="the least number of copies in sync that was asked for")
    finally:
        await admin.close()


async def test_a_room_that_listens_first_makes_no_topic(real_kafka_url: str) -> None:
    topic = Topic(f"test.{uuid.uuid4().hex[:8]}", 3, "of a test")
    broker = build_broker(real_kafka_url, "test")

    async def on_fact(_: object) -> None:
        return None

    hear(broker, [topic], on_fact)

    async def has_started() -> bool:
        return all(getattr(subscriber, "consumer", None) is not None for subscriber in broker.subscribers)

    async with listening(broker):
        await until(has_started, what="the subscriber")
        admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka_url)
        await admin.start()
        try:
            assert topic.name not in await admin.list_topics()
        finally:
            await admin.close()


async def test_a_room_hears_where_several_bootstrap_servers_are_named(real_kafka_url: str) -> None:
    broker = build_broker(f"{real_kafka_url},127.0.0.1:1", "test")

    async def on_fact(_: object) -> None:
        return None

    hear(broker, [Topic("luthier.job-events.v1", 1, "of a test")], on_fact)

    async def has_started() -> bool:
        return all(getattr(subscriber, "consumer", None) is not None for subscriber in broker.subscribers)

    async with listening(broker):
        await until(has_started, what="the subscriber")
