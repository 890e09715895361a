"""Is this process alive, and could it work now: `GET /healthz` and `GET /readyz`.

Alive means that its loops beat: a loop that hangs is cured by a restart, which the process sees to itself where no
supervisor does (`kit/room.py`). Ready means that everything is opened and that what it needs answers: a database that
is away is not cured by a restart, so it never makes a process unhealthy.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from luthier_common.kit.errors import LuthierError

Check = Callable[[], Awaitable[str | None]]
"""Returns None when all is well, or a short text that says what is missing; an error counts as missing."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

CHECK_LIMIT_S = 1.0
FRESH_S = 1.0
"""Anybody may ask whether a process is ready, and the answer costs: so long it is the same one for all."""
STALE_AFTER_S = 30.0


class Health:
    """Named checks and progress marks of one process."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._beats: dict[str, float] = {}
        self._stale_after_s: dict[str, float] = {}
        self._looking: asyncio.Task[dict[str, str]] | None = None
        self._fresh_until_s = 0.0
        self.starting = False
        self.stopping = False

    def require(self, name: str, check: Check) -> None:
        """Something without which this process cannot work."""
        self._checks[name] = check
        self._looking = None

    def expect(self, name: str, stale_after_s: float = STALE_AFTER_S) -> None:
        """A loop that from now on must beat at least that often."""
        self._stale_after_s[name] = stale_after_s
        self._beats[name] = time.monotonic()

    def beat(self, name: str) -> None:
        """The loop made progress."""
        self._beats[name] = time.monotonic()

    def forget(self, name: str) -> None:
        """The loop has ended as it should."""
        self._beats.pop(name, None)
        self._stale_after_s.pop(name, None)

    def stale(self) -> list[str]:
        """The loops that should have beaten by now. Any thread may ask: the copy is one step."""
        now, beats = time.monotonic(), self._beats.copy()
        return sorted(name for name, at in beats.items() if now - at > self._stale_after_s.get(name, STALE_AFTER_S))

    async def missing(self) -> dict[str, str]:
        """What keeps this process from working, by name; empty when it is ready. Whoever asks meanwhile shares it."""
        if self.starting or self.stopping:
            return {"room": "starting" if self.starting else "stopping"}
        if self._looking is None or (self._looking.done() and time.monotonic() > self._fresh_until_s):
            self._looking = asyncio.create_task(self._look(), name="readiness")
        return await asyncio.shield(self._looking)

    async def _look(self) -> dict[str, str]:
        names = list(self._checks)
        answers = await asyncio.gather(*(_ask(self._checks[name]) for name in names))
        self._fresh_until_s = time.monotonic() + FRESH_S
        return {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}


def health_asgi(health: Health) -> AsgiApp:
    """An ASGI app with both addresses, to be mounted or served alone."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = str(scope.get("root_path", "")) + str(scope["path"])
        raw_path = bytes(scope.get("raw_path") or b"").decode("latin-1").partition("?")[0]
        ends = {path.rstrip("/").rpartition("/")[2], raw_path.rstrip("/").rpartition("/")[2]}
        if scope["method"] not in ("GET", "HEAD"):
            status, body = _refused(405, "method_not_allowed")
        elif "healthz" in ends:
            status, body = _live(health)
        elif "readyz" in ends:
            status, body = await _ready(health)
        else:
            status, body = _refused(404, "not_found")
        await _answer(send, status, body, scope["method"] == "HEAD")

    return app


@asynccontextmanager
async def serve_health(health: Health, port: int, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serves both addresses until the block ends; yields the port (0 asks for a free one). OSError when it is taken."""
    listener = socket.create_server((host, port))
    config = uvicorn.Config(
        health_asgi(health),
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=1,
        limit_concurrency=64,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="health")
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task, 2)
        listener.close()


class _Server(uvicorn.Server):
    """Signals belong to the room."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _ask(check: Check) -> str | None:
    try:
        return await asyncio.wait_for(check(), CHECK_LIMIT_S)
    except TimeoutError:
        return f"no answer within {CHECK_LIMIT_S:g} s"
    except LuthierError as error:
        return str(error) or type(error).__name__
    except Exception as error:
        return type(error).__name__


def _live(health: Health) -> tuple[int, dict[str, object]]:
    stale = health.stale()
    return (503, {"status": "stale", "stale": stale}) if stale else (200, {"status": "ok"})


async def _ready(health: Health) -> tuple[int, dict[str, object]]:
    missing = await health.missing()
    return (503, {"status": "not_ready", "missing": missing}) if missing else (200, {"status": "ready"})


def _refused(status: int, why: str) -> tuple[int, dict[str, object]]:
    return status, {"status": why}


async def _answer(send: Send, status: int, body: dict[str, object], head: bool) -> None:
    content = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else content})
