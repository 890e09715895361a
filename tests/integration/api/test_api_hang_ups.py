"""Clients that hang up, or send for ever: each gets what is its own, and nobody is alarmed."""

import asyncio
from typing import Any

import pytest

from builders.engines import Engine, joined
from builders.waiting import until
from integration.api.conftest import TINY, Api

FORM = '--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


async def _begin(api: Api, key: str, num_bytes: int, more: str = "") -> tuple[asyncio.StreamReader, Any]:
    """An upload that has been announced and begun."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{more}"
        f"content-type: multipart/form-data; boundary=XX\r\ncontent-length: {num_bytes}\r\n\r\n{FORM}"
    )
    writer.write(head.encode())
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("more", ["", "idempotency-key: hung-up\r\n"], ids=["plain", "keyed"])
async def test_an_upload_that_its_client_breaks_off_is_no_fault_of_the_server(api: Api, more: str) -> None:
    key = await api.new_key("files:write")
    _, writer = await _begin(api, key, 100_000, more)
    writer.transport.abort()

    async def row() -> Any:
        return await api.db["audit_log"].find_one({"key": key.split("-")[2]})

    seen = await until(row)
    assert (seen["operation"], seen["status"], seen["code"]) == ("create_file", 499, "client_closed_request")
    assert "a request failed" not in (api.home / "log").read_text()


async def test_a_keyed_question_whose_client_hung_up_is_asked_again(api: Api) -> None:
    """The client gave up waiting; its repetition is not answered with that."""
    engine, sdk = Engine("engine-slow-keyed", is_slow=True), api.sdk()
    headers = {"Idempotency-Key": "hung up on an engine"}
    async with joined(api.db, engine, TINY), asyncio.timeout(30):
        asking = asyncio.create_task(sdk.responses.create(model=TINY, input="hi", extra_headers=headers))
        await engine.until_asked()
        asking.cancel()
        await engine.left.wait()
        engine.is_slow = False
        answer = await sdk.responses.create(model=TINY, input="hi", extra_headers=headers)
    assert answer.output_text == "engine-slow-keyed"
    assert len(engine.asked) == 2


async def test_a_repetition_that_is_too_long_or_never_ends_is_cut_off(api: Api) -> None:
    key, headers = await api.new_key("files:write"), {"Idempotency-Key": "endless"}
    sdk = api.sdk(key)
    await sdk.files.create(file=("once.jsonl", b"{}\n"), purpose="fine-tune", extra_headers=headers)
    for num_bytes, sent, status, code in (
        (10_000_000, b"x" * 9_000_000, b"413", b'"request_too_large"'),
        (100_000, b"x", b"408", b'"upload_timeout"'),
    ):
        reader, writer = await _begin(api, key, num_bytes, "idempotency-key: endless\r\n")
        async with asyncio.timeout(20):
            writer.write(sent)
            answer = await reader.readuntil(b"}}")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert code in answer
