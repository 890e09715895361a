"""No client holds a connection for nothing, whatever it sends between two requests."""

import asyncio
import time
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
async def port() -> AsyncIterator[int]:
    async with served(_answer, keep_alive_s=0.3) as number:
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


async def test_a_head_that_was_begun_has_less_time_than_a_connection_that_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How long connections rest is set by what proxies do; who sends a byte and no more is none."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    async with served(_answer, keep_alive_s=30) as port, asyncio.timeout(4):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GE")
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


async def test_a_connection_is_used_again() -> None:
    async with served(_answer) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"\r\n" + ASK)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(ANSWER)
        await _close(writer)


async def test_a_connection_that_was_opened_ahead_rests_as_long_as_one_that_was_used() -> None:
    """Proxies open some before they need them; one that ended first would cost the request that is sent on it."""
    began_s = time.monotonic()
    async with served(_answer, keep_alive_s=1.5) as port, asyncio.timeout(20):
        ahead, used = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        used[1].write(ASK)
        await used[0].readuntil(b"\r\n\r\n")
        for reader, writer in (ahead, used):
            assert await reader.read() == b""
            assert time.monotonic() - began_s > 1.4
            await _close(writer)
