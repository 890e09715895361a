"""Who reads by partition leaves a broker that is gone without being cancelled for it."""

import asyncio
from pathlib import Path

from builders.waiting import until
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.stream import Part, Reader, ensure_topics
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack


async def test_a_reader_whose_broker_is_gone_is_closed_like_any_other(tmp_path: Path) -> None:
    """The driver lets out the cancellation of a fetch that waits for the broker: it would end whatever loop closes."""
    settings = StackSettings(home=tmp_path / "home", services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack:
        url, topic = stack.env["LUTHIER_KAFKA_URL"], TOPICS[Kind.JOB]
        of_others = _tasks_of_the_driver()
        await ensure_topics(url)
        readers = [Reader(url) for _ in range(8)]
        for reader in readers:
            await reader.seek({Part(topic.name, number): 0 for number in range(topic.num_partitions)})
            await reader.read(wait_ms=200)
        await stack.stop_service("tansu")
        for reader in readers:
            await asyncio.sleep(0.05)  # they close at various instants of the driver's loop: at some a fetch waits
            await reader.close()

        async def is_none_left() -> bool:
            return _tasks_of_the_driver() <= of_others

        await until(is_none_left, what="the end of all tasks of these readers")


def _tasks_of_the_driver() -> set[asyncio.Task[object]]:
    """All tests share a loop: some may be of clients that other fixtures keep open."""
    return {task for task in asyncio.all_tasks() if "aiokafka" in repr(task)}
