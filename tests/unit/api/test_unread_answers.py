"""A client that does not read its answer is dropped, and one that reads slowly is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from builders.bounded_http import served
from luthier_api import protocol

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
NUM_CHUNKS, CHUNK = 400, b"x" * 65_536


class Talker:
    """Says more than the buffers between here and a client hold."""

    def __init__(self) -> None:
        self.is_left = asyncio.Event()

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        talking = asyncio.create_task(self._talk(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        talking.cancel()
        self.is_left.set()

    async def _talk(self, send: Any) -> None:
        for _ in range(NUM_CHUNKS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def talker() -> Talker:
    return Talker()


@pytest.fixture
async def port(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(protocol, "UNREAD_S", 1.0)
    async with served(talker) as number:
        yield number


async def test_who_reads_nothing_is_dropped(talker: Talker, port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(ASK)
    async with asyncio.timeout(20):
        await talker.is_left.wait()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_who_reads_slowly_gets_all_of_it(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ASK)
    num_bytes = 0
    async with asyncio.timeout(60):
        while piece := await reader.read(2**22):
            num_bytes += len(piece)
            if num_bytes >= NUM_CHUNKS * len(CHUNK):
                break
            await asyncio.sleep(0.01)
    writer.close()
