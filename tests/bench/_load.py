"""Load on an HTTP server from one process, with clients that keep their connection and cost next to nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple, Self

Work = Callable[[], Awaitable[None]]


class OutOfWorkError(Exception):
    """A worker has nothing left to do; the round ends early."""


class Load(NamedTuple):
    """What the clients saw: latencies in milliseconds, and over how many seconds."""

    latencies_ms: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies_ms) / self.seconds


class Client:
    """One connection; speaks as much HTTP/1.1 as our API needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._always = f"host: bench\r\nauthorization: Bearer {key}\r\n"

    @classmethod
    async def connect(cls, port: int, key: str = "", *, within_s: float = 20.0) -> Self:
        deadline = time.monotonic() + within_s
        while True:
            try:
                return cls(*await asyncio.open_connection("127.0.0.1", port), key)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def get(self, path: str) -> bytes:
        return await self._exchange(f"GET {path} HTTP/1.1\r\n{self._always}\r\n".encode())

    async def post(self, path: str, body: bytes, key: str) -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return await self._exchange(head.encode() + body)

    async def _exchange(self, request: bytes) -> bytes:
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"the server answered {head.splitlines()[0].decode()}: {body[:300].decode()}")
        return body

    def close(self) -> None:
        self._writer.close()


async def closed_loop(workers: list[Work], seconds: float, *, warm_up_s: float = 0.5) -> Load:
    """Every worker goes on as soon as it is answered; what begins during the warm-up does not count."""
    begins_at = time.perf_counter() + warm_up_s
    ends_at = begins_at + seconds
    latencies: list[float] = []

    async def go_on(work: Work) -> None:
        while (began_at := time.perf_counter()) < ends_at:
            try:
                await work()
            except OutOfWorkError:
                return
            if began_at >= begins_at:
                latencies.append((time.perf_counter() - began_at) * 1000)

    await asyncio.gather(*(go_on(work) for work in workers))
    return Load(latencies, time.perf_counter() - begins_at)


async def open_loop(workers: list[Work], rate: float, seconds: float) -> Load:
    """One piece of work every 1/rate s, by whoever is free; waiting for somebody free counts as latency."""
    free: asyncio.Queue[Work] = asyncio.Queue()
    for worker in workers:
        free.put_nowait(worker)
    latencies: list[float] = []

    async def do_one(due_at: float) -> None:
        work = await free.get()
        await work()
        latencies.append((time.perf_counter() - due_at) * 1000)
        free.put_nowait(work)

    began_at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for due_at in _times(began_at, rate, seconds):
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            group.create_task(do_one(due_at))
    return Load(latencies, time.perf_counter() - began_at)


def _times(began_at: float, rate: float, seconds: float) -> Iterator[float]:
    for number in range(int(rate * seconds)):
        yield began_at + number / rate
