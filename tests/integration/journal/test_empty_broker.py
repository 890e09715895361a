"""The embedded broker dies between two sends and comes back empty: what is acknowledged from then on is there."""

import contextlib
import signal
from pathlib import Path

from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.errors import TransientError
from luthier_common.kit.stream import Message, Part, Reader, Writer
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

JOBS = TOPICS[Kind.JOB].name
MOST_TRIES = 5


async def test_a_writer_that_outlived_the_broker_makes_its_topics_before_it_is_believed(tmp_path: Path) -> None:
    settings = StackSettings(home=tmp_path, services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack:
        url = stack.env["LUTHIER_KAFKA_URL"]
        writer, late, reader = Writer(url), Writer(url), Reader(url)
        try:
            await send(writer, *("before",) * 3)
            stack.kill("tansu", signal.SIGKILL)
            await stack.wait_ready("tansu")
            await send(writer, "one")
            await send(writer, "two", "three", "four")
            await send(late, "last")
            assert set(await read_all(reader)) == {"one", "two", "three", "four", "last"}
        finally:
            for client in (writer, late, reader):
                await client.close()


async def send(writer: Writer, *texts: str) -> None:
    """As the relay does: the same again until it is acknowledged."""
    for _ in range(MOST_TRIES):
        with contextlib.suppress(TransientError):
            await writer.send(JOBS, 0, [Message(b"job", text.encode(), []) for text in texts])
            return
    raise AssertionError(f"not acknowledged: {texts}")


async def read_all(reader: Reader) -> list[str]:
    part = Part(JOBS, 0)
    await reader.seek({part: 0})
    texts: list[str] = []
    for _ in range(50):
        if "last" in texts:
            break
        batches, lost = await reader.read(wait_ms=100)
        assert not lost
        texts += [record.value.decode() for record in batches.get(part, [])]
    return texts
