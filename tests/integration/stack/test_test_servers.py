"""The servers that other tests stand on answer as real clients expect."""

from collections.abc import Callable

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pymongo import AsyncMongoClient


async def test_the_embedded_database_takes_a_transaction(mongo_url: str, database_name: str) -> None:
    async with AsyncMongoClient[dict[str, object]](mongo_url, timeoutMS=10_000) as client:
        async with client.start_session() as session, await session.start_transaction():
            await client[database_name].things.insert_one({"_id": 1}, session=session)
        assert await client[database_name].things.count_documents({}) == 1


async def test_the_embedded_broker_takes_a_message(kafka_url: str) -> None:
    await _send_one(kafka_url)


async def test_the_real_broker_takes_a_message(real_kafka_url: str) -> None:
    await _send_one(real_kafka_url)


def test_free_ports_differ(free_port: Callable[[], int]) -> None:
    assert free_port() > 0


async def _send_one(url: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=url)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("things", num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=url, acks="all") as producer:
        sent = await producer.send_and_wait("things", b"hello")
    assert sent.offset == 0
