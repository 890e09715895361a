"""No client holds a connection for nothing, whatever it sends between two requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from builders.bounded_http import served
from luthier_api import protocol

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 204"


async def _answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    async with served(_answer) as number:
        yield number


@pytest.mark.parametrize("sent", [b"\r\n", b"GE"], ids=["nothing", "a beginning"])
async def test_a_connection_that_sends_no_whole_request_is_ended(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(4):
        writer.write(ASK)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(ANSWER)
        writer.write(sent)
        assert await reader.read() == b""
    await _close(writer)


async def test_a_body_that_goes_on_behind_its_answer_is_ended(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(4):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(ANSWER)
        writer.write(b"x")
        assert await reader.read() == b""
    await _close(writer)


async def test_a_connection_is_used_again(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(b"\r\n" + ASK)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(ANSWER)
    await _close(writer)
