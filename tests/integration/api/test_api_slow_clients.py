"""Clients that take their time: each is held up by itself, and holds up nobody else."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from builders.waiting import until
from integration.api.conftest import Api, run_api
from luthier_common.kit.objects_s3 import MAX_PUTS

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
LARGE = LINE * 300_000
"""More than the buffers between a server and its client hold."""
AT_ONCE = 2
ENV = {
    "LUTHIER_MAX_UPLOADS": str(AT_ONCE),
    "LUTHIER_MAX_DOWNLOADS": str(AT_ONCE),
    "LUTHIER_JSON_TIMEOUT_S": "2",
    "LUTHIER_UPLOAD_TIMEOUT_S": "120",
    "LUTHIER_MAX_FILE_BYTES": str(len(LARGE)),
}
FORM = b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
FORM += b'--XX\r\nContent-Disposition: form-data; name="file"; filename="slow"\r\n\r\n'
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
async def patient(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Api]:
    home: Path = tmp_path_factory.mktemp("slow")
    async with run_api(mongo_url, kafka_url, home, free_port(), "test_api_slow_clients", ENV) as api:
        yield api


async def begin(api: Api, key: str, request: str, *headers: str) -> Connection:
    """A request whose head is sent, by a client that takes in little at a time."""
    host, port = api.url.removeprefix("http://").split(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
    lines = [f"{request} HTTP/1.1", "host: x", f"authorization: Bearer {key}", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    await writer.drain()
    return reader, writer


async def send(api: Api, key: str, content: bytes = LINE) -> httpx2.Response:
    async with api.http(key) as http:
        http.timeout = httpx2.Timeout(60)
        form = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "user_data"}}
        return await http.post("/v1/files", **form)  # type: ignore[arg-type]


async def test_slow_readers_have_so_many_turns_and_others_theirs(patient: Api) -> None:
    slow, other = await patient.new_key("files:read", "files:write"), await patient.new_key("files:read")
    path = f"/v1/files/{(await send(patient, slow, LARGE)).json()['id']}/content"
    readers = [await begin(patient, slow, f"GET {path}") for _ in range(AT_ONCE)]
    for reader, _ in readers:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    async with patient.http(slow) as http, patient.http(other) as another:
        refused = await http.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_downloads")
        assert refused.headers["retry-after"] == "1"
        assert (await another.get(path)).content == LARGE
        assert (await send(patient, slow)).status_code == 200
        readers[0][1].transport.abort()

        async def is_let_in() -> bool:
            return (await http.get(path)).status_code == 200

        await until(is_let_in, what="the turn of the reader that has left")
    readers[1][1].transport.abort()


async def test_slow_senders_keep_only_their_own_keys_uploads_waiting(patient: Api) -> None:
    slow, other = await patient.new_key("files:write"), await patient.new_key("files:write")
    length = len(FORM) + len(b"x\r\n--XX--\r\n")
    kind = ("content-type: multipart/form-data; boundary=XX", f"content-length: {length}")
    senders = [await begin(patient, slow, "POST /v1/files", *kind) for _ in range(AT_ONCE)]
    for _, writer in senders:
        writer.write(FORM)
        await writer.drain()

    async def are_begun() -> bool:
        begun = patient.db["objects"].find({"intent_until": {"$type": "date"}, "bytes": None})
        return len(await begun.to_list(10)) == AT_ONCE

    await until(are_begun, what="both uploads are being stored")
    waiting = asyncio.create_task(send(patient, slow))
    for _ in range(5):
        assert (await send(patient, other)).status_code == 200
    assert not waiting.done(), "it has its turn when one of the others is through"
    senders[0][1].write(b"x\r\n--XX--\r\n")
    assert (await senders[0][0].readline()).startswith(b"HTTP/1.1 200")
    assert (await waiting).status_code == 200
    for _, writer in senders:
        writer.transport.abort()


async def test_slow_senders_of_one_organisation_keep_no_other_waiting(patient: Api) -> None:
    """It has many keys, and with each as many uploads as it may have: more than there are places."""
    length = len(FORM) + len(b"x\r\n--XX--\r\n")
    kind = ("content-type: multipart/form-data; boundary=XX", f"content-length: {length}")
    slow = [await patient.new_key("files:write", project="proj-slow", org="org-slow") for _ in range(MAX_PUTS)]
    senders = [await begin(patient, key, "POST /v1/files", *kind) for key in slow for _ in range(AT_ONCE)]
    for _, writer in senders:
        writer.write(FORM)
        await writer.drain()

    async def are_begun() -> bool:
        begun = patient.db["objects"].find({"org": "org-slow", "intent_until": {"$type": "date"}})
        return len(await begun.to_list(None)) >= MAX_PUTS // 3

    await until(are_begun, what="as many as it may have")
    async with asyncio.timeout(10):
        assert (await send(patient, await patient.new_key("files:write"))).status_code == 200
    assert await patient.db["objects"].count_documents({"org": "org-slow"}) == MAX_PUTS // 3
    for _, writer in senders:
        writer.transport.abort()


async def test_many_parts_at_once_of_one_key_all_arrive(patient: Api) -> None:
    """As clients send them: none is refused for those that are on their way."""
    num_parts = 40
    async with patient.http(await patient.new_key("files:write")) as http:
        http.timeout = httpx2.Timeout(60)
        wanted = {"bytes": num_parts, "filename": "b", "mime_type": "text/plain", "purpose": "user_data"}
        upload = (await http.post("/v1/uploads", json=wanted)).json()["id"]
        sends = (http.post(f"/v1/uploads/{upload}/parts", files={"data": ("part", b"x")}) for _ in range(num_parts))
        assert {answer.status_code for answer in await asyncio.gather(*sends)} == {200}


@pytest.mark.parametrize("keyed", [(), ("idempotency-key: endless",)], ids=["plain", "keyed"])
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("chat/completions", "application/json"),
        ("fine_tuning/jobs", "application/json"),
        ("fine_tuning/jobs", "multipart/form-data; boundary=XX"),
    ],
)
async def test_a_body_that_stops_coming_is_not_waited_for(
    patient: Api, path: str, kind: str, keyed: tuple[str, ...]
) -> None:
    """Whatever it says that it is: only uploads have longer."""
    head = (f"content-type: {kind}", "content-length: 100000")
    reader, writer = await begin(patient, patient.key, f"POST /v1/{path}", *head, *keyed)
    writer.write(b'{"model":')
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"upload_timeout"' in answer
    assert b"x-should-retry: false" in answer


async def test_a_keyed_body_is_refused_as_soon_as_it_is_larger_than_its_route_takes(patient: Api) -> None:
    kind = ("content-type: application/json", "content-length: 8000000", "idempotency-key: large")
    reader, writer = await begin(patient, patient.key, "POST /v1/fine_tuning/jobs", *kind)
    writer.write(b" " * 1_500_000)
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.transport.abort()


async def test_a_connection_rests_longer_than_those_of_proxies_do(patient: Api) -> None:
    reader, writer = await begin(patient, patient.key, "GET /healthz")
    assert (await reader.readuntil(b"[]}")).startswith(b"HTTP/1.1 200")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(6):
            await reader.read(1)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
