"""Uploads: what one core of the api process takes in, hashes and stores, and how much memory a large file costs it.

100 MB through `POST /v1/files` (gate 100 MB/s of one core, aim 250), beside the same bytes hashed and written by a bare
loop in the same run. Then 5 GB that are made while they are sent, and the same in parts, eight at a time: rates and the
growth of the process' peak memory. The client runs in a process of its own. `LUTHIER_BENCH_LARGE_BYTES` asks for a
smaller large file.
"""

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
from _bench import READY_S, elsewhere, percentile, report, run, stack_of
from _load import Client
from pydantic import SecretStr

MB = 1_000_000
SMALL_BYTES = 100 * MB
LARGE_BYTES = int(os.environ.get("LUTHIER_BENCH_LARGE_BYTES", 5_000 * MB))
PART_BYTES = 64 * 1024 * 1024
AT_ONCE = 8
ROUNDS = 5
LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
CHUNK = LINE * 3000
BOUNDARY = "bench"
TICKS = os.sysconf("SC_CLK_TCK")


class Server(NamedTuple):
    """Where the api is, whose key works there, and its process."""

    url: str
    key: SecretStr
    pid: int


class Used(NamedTuple):
    """What one upload took: by the clock, and of the api process' processor time."""

    wall_s: float
    cpu_s: float


async def measure() -> None:
    async with stack_of(["api"]) as stack:
        (await Client.connect(stack.port, within_s=READY_S)).close()
        pid = stack.processes["api"]
        assert pid is not None
        server = Server(stack.api_url, SecretStr(stack.admin_key), pid)
        bare: list[float] = []
        ours: list[Used] = []
        for _ in range(ROUNDS):
            bare.append(await elsewhere(store_bare, stack.home))
            ours.append(await elsewhere(upload_whole, server, SMALL_BYTES))
        rate = percentile([SMALL_BYTES / MB / used.cpu_s for used in ours], 50)
        report("upload.small.rate_per_core", rate, "MB/s", SMALL_BYTES / MB / percentile(bare, 50))
        report("upload.small.rate_by_clock", SMALL_BYTES / MB / percentile([u.wall_s for u in ours], 50), "MB/s")
        for name, send in (("whole", upload_whole), ("parts", upload_parts)):
            before = _reset_peak(server.pid)
            used = await elsewhere(send, server, LARGE_BYTES)
            report(f"upload.large.{name}.rate_by_clock", LARGE_BYTES / MB / used.wall_s, "MB/s")
            report(f"upload.large.{name}.rate_per_core", LARGE_BYTES / MB / used.cpu_s, "MB/s")
            report(f"upload.large.{name}.peak_growth", (_memory(server.pid, "VmHWM") - before) / 1024, "MiB")


def store_bare(folder: Path) -> float:
    """In a process of its own: seconds to hash the small file's bytes and write them to a synced file."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began_s, digest = time.process_time(), hashlib.sha256()
        for chunk in _chunks(SMALL_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return time.process_time() - began_s


def upload_whole(server: Server, num_bytes: int) -> Used:
    """In a process of its own: one file in one request, then gone again."""

    async def body() -> AsyncIterator[bytes]:
        yield _head("file")
        for chunk in _chunks(num_bytes):
            yield chunk
        yield _field("purpose", "user_data") + _end()

    async def go() -> Used:
        async with _client(server) as http:
            began = _now(server)
            answer = await http.post("/v1/files", content=body(), headers=_form())
            used = _since(server, began)
            await _check_and_delete(http, answer, num_bytes)
        return used

    return asyncio.run(go())


def upload_parts(server: Server, num_bytes: int) -> Used:
    """In a process of its own: one file in parts, some at once, then gone again."""

    async def part(http: httpx2.AsyncClient, upload_id: str, size: int, turn: asyncio.Semaphore) -> str:
        async def body() -> AsyncIterator[bytes]:
            yield _head("data")
            for chunk in _chunks(size):
                yield chunk
            yield _end()

        async with turn:
            answer = await http.post(f"/v1/uploads/{upload_id}/parts", content=body(), headers=_form())
        return str(answer.raise_for_status().json()["id"])

    async def go() -> Used:
        wanted = {"bytes": num_bytes, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
        sizes = [min(PART_BYTES, num_bytes - start) for start in range(0, num_bytes, PART_BYTES)]
        async with _client(server) as http:
            began, turn = _now(server), asyncio.Semaphore(AT_ONCE)
            upload_id = (await http.post("/v1/uploads", json=wanted)).raise_for_status().json()["id"]
            part_ids = await asyncio.gather(*(part(http, upload_id, size, turn) for size in sizes))
            answer = await http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids})
            used = _since(server, began)
            await _check_and_delete(http, answer, num_bytes)
        return used

    return asyncio.run(go())


async def _check_and_delete(http: httpx2.AsyncClient, answer: httpx2.Response, num_bytes: int) -> None:
    body = answer.raise_for_status().json()
    file = body.get("file") or body
    assert file["bytes"] == num_bytes, json.dumps(body)
    (await http.delete(f"/v1/files/{file['id']}")).raise_for_status()


def _client(server: Server) -> httpx2.AsyncClient:
    headers = {"authorization": f"Bearer {server.key.get_secret_value()}"}
    return httpx2.AsyncClient(base_url=server.url, headers=headers, timeout=600)


def _chunks(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // len(CHUNK)):
        yield CHUNK
    yield CHUNK[: num_bytes % len(CHUNK)]


def _form() -> dict[str, str]:
    return {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def _head(name: str) -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="upload"\r\n\r\n'.encode()


def _field(name: str, value: str) -> bytes:
    return f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def _end() -> bytes:
    return f"\r\n--{BOUNDARY}--\r\n".encode()


def _now(server: Server) -> tuple[float, float]:
    return time.perf_counter(), _cpu_s(server.pid)


def _since(server: Server, began: tuple[float, float]) -> Used:
    wall_s, cpu_s = _now(server)
    return Used(wall_s - began[0], cpu_s - began[1])


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _reset_peak(pid: int) -> int:
    """Start counting the peak anew; what the process holds now, in KiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def _memory(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise SystemExit("the api process is gone")


if __name__ == "__main__":
    run(measure)
