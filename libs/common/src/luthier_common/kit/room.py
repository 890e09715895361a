"""The one way every room runs: logs, telemetry, health, signals, background loops, and an end within a known time.

async def main(room: Room) -> None:
    db = await room.enter("mongo", open_database(settings))
    room.health.require("mongo", lambda: ping(db))
    wake = asyncio.Event()
    room.spawn("relay", room.every(2.0, relay_once, wake))

run_room("api", main)
"""

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import FrameType
from typing import Any, TypeVar

import uvloop
from aiokafka.errors import KafkaError

from luthier_common.kit.health import Health, serve_health
from luthier_common.kit.logs import start_logs
from luthier_common.kit.mongo import OUTAGES, is_outage
from luthier_common.kit.telemetry import start_telemetry

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

TRANSIENT_ERRORS: tuple[type[Exception], ...] = (KafkaError, OSError, TimeoutError, *OUTAGES)


def is_transient(error: Exception) -> bool:
    """One of `TRANSIENT_ERRORS`, or a database that is there and cannot answer yet: the same call may succeed."""
    return isinstance(error, TRANSIENT_ERRORS) or is_outage(error)


# A second less than what supervisors give before they kill.
STOP_AFTER_S = 14.0
CLOSE_LIMIT_S = 3.0
CLOSE_ALL_LIMIT_S = 4.0
TELEMETRY_LIMIT_S = 2.0
MAX_BACK_OFF_S = 5.0
# So much longer than it may a loop is silent before its process ends itself: not every supervisor heeds /healthz.
HUNG_AFTER_S = 60.0
LOOK_EVERY_S = 5.0
# So many new objects, beyond those that have gone by themselves, before the collector looks for cycles among them.
_MANY_NEW = 5000
# Of the time to stop, what closing clients, telemetry and the interpreter may need.
_CLOSING_SHARE_S = 9.0


class Room:
    """What a room's `main` gets. Loops look at `stopping`; a loop that crashes ends the process."""

    def __init__(self, name: str, *, stop_after_s: float = STOP_AFTER_S) -> None:
        self.name = name
        self.health = Health()
        self.health.starting = True
        self.stopping = asyncio.Event()
        self.crashed = False
        self._drained = asyncio.Event()
        self.stop_after_s = stop_after_s
        self._grace_s: dict[asyncio.Task[object], float] = {}
        self._clients: list[tuple[str, AsyncExitStack]] = []

    def spawn(
        self, name: str, coro: Coroutine[Any, Any, object], *, grace_s: float | None = None
    ) -> asyncio.Task[object]:
        """Runs a named loop. When the room stops it has `grace_s` to end before it is cancelled; 0: at once."""
        task: asyncio.Task[object] = asyncio.create_task(coro, name=name)
        self._grace_s[task] = max(1.0, self.stop_after_s - _CLOSING_SHARE_S) if grace_s is None else grace_s
        task.add_done_callback(self._ended)
        return task

    async def enter(self, name: str, client: AbstractAsyncContextManager[_T]) -> _T:
        """Opens a client that the room closes when its loops have ended, last first, each within 3 s, all in 4 s."""
        stack = AsyncExitStack()
        opened = await stack.enter_async_context(client)
        self._clients.append((name, stack))
        return opened

    def started(self) -> None:
        """All is opened. It stays, so the collector, which took a fifth of a busy room's time, need not look at it.

        It looks less often at what is new, too: that took 4 % of the time, since hundreds of requests under way are
        more than the 700 objects of Python's own setting.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(_MANY_NEW, *gc.get_threshold()[1:])
        self.health.starting = False

    async def until_stopped(self) -> None:
        """Waits until the room stops and its loops have ended; for a `main` that holds its clients itself."""
        self.started()
        await self._drained.wait()

    async def every(
        self,
        seconds: float,
        work: Callable[[], Awaitable[object]],
        wake: asyncio.Event | None = None,
        *,
        stale_after_s: float | None = None,
    ) -> None:
        """Does `work` now, whenever woken, and at the latest every `seconds`, until the room stops.

        A transient error is logged and tried again with a bounded back-off, during which waking does not count. Work
        that lasts longer than `stale_after_s` (30 s or three rounds) beats `room.health` itself, by the task's name.
        """
        name = _task_name()
        wake = wake or asyncio.Event()
        self.health.expect(name, stale_after_s or max(30.0, 3 * seconds))
        failures = 0
        while not self.stopping.is_set():
            wake.clear()
            try:
                await work()
                failures = 0
            except Exception as error:
                if not is_transient(error):
                    raise
                failures += 1
                told = _log.warning if failures in (1, 10) or failures % 100 == 0 else _log.debug
                told("%s: %s: %s", name, type(error).__name__, error, extra={"failures": failures})
            self.health.beat(name)
            if failures:
                await _first_of(_back_off_s(failures), self.stopping)
            else:
                await _first_of(seconds, self.stopping, wake)
        self.health.forget(name)

    def stop(self) -> None:
        """Asks everything to end."""
        self.health.stopping = True
        self.stopping.set()

    async def drain(self, main: asyncio.Task[object]) -> None:
        """After `stopping`: loops end, then `main`, then the clients."""
        loops = {task: grace_s for task, grace_s in self._grace_s.items() if task is not main}
        await asyncio.gather(*(_end(task, grace_s) for task, grace_s in loops.items()))
        self._drained.set()
        await _end(main, CLOSE_LIMIT_S)
        deadline = time.monotonic() + CLOSE_ALL_LIMIT_S
        for name, stack in reversed(self._clients):
            left_s = max(0.2, deadline - time.monotonic())
            try:
                async with asyncio.timeout(min(CLOSE_LIMIT_S, left_s)):
                    await stack.aclose()
            except (Exception, asyncio.CancelledError) as error:  # a driver may let its own cancellations out
                _log.warning("closing %s: %s: %s", name, type(error).__name__, error)

    def _ended(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if self.stopping.is_set():
                _log.warning("%s ended while stopping: %s: %s", task.get_name(), type(error).__name__, error)
            else:
                self.crashed = True
                _log.error("%s crashed", task.get_name(), exc_info=error)
                self.stop()
        self._grace_s.pop(task, None)
        if not self._grace_s:
            self.stop()


def run_room(name: str, main: Callable[[Room], Awaitable[None]], *, stop_after_s: float = STOP_AFTER_S) -> None:
    """Runs a room until SIGTERM or SIGINT, or until `main` and all its loops have ended; then exits the process.

    Exit code 0, or 1 when `main` or a loop crashed. From the signal to the exit it takes at most `stop_after_s`.
    """
    start_logs(name)
    telemetry = start_telemetry(name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        crashed = runner.run(_live(name, main, stop_after_s))
        telemetry.stop(TELEMETRY_LIMIT_S)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by the interpreter's end, which waits for every thread: a driver's may hang in a call to a dead server.
    os._exit(1 if crashed else 0)


async def _live(name: str, main: Callable[[Room], Awaitable[None]], stop_after_s: float) -> bool:
    room = Room(name, stop_after_s=stop_after_s)
    loop = asyncio.get_running_loop()
    watchdog = _Watchdog(room)

    def asked(_number: int, _frame: FrameType | None) -> None:
        # Not in the loop, which may be the very thing that is stuck.
        watchdog.start()
        loop.call_soon_threadsafe(room.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    async with _health_served(room):
        task = room.spawn("main", _run_main(room, main))
        await room.stopping.wait()
        watchdog.start()
        _log.info("stopping")
        await room.drain(task)
    _log.info("stopped")
    return room.crashed


async def _run_main(room: Room, main: Callable[[Room], Awaitable[None]]) -> None:
    await main(room)
    if not room.stopping.is_set():
        room.started()


@asynccontextmanager
async def _health_served(room: Room) -> AsyncIterator[None]:
    port = os.environ.get("LUTHIER_HEALTH_PORT")
    if not port:
        yield
        return
    async with serve_health(room.health, int(port), os.environ.get("LUTHIER_HEALTH_HOST", "127.0.0.1")) as served:
        _log.info("health", extra={"port": served})
        yield


async def _end(task: asyncio.Task[object], grace_s: float) -> None:
    if grace_s > 0:
        await asyncio.wait({task}, timeout=grace_s)
    if not task.done():
        if grace_s > 0:
            _log.warning("%s did not end within %g s", task.get_name(), grace_s)
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)


async def _first_of(seconds: float, *events: asyncio.Event) -> None:
    """Waits for one of the events, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _back_off_s(failures: int) -> float:
    return min(MAX_BACK_OFF_S, 0.25 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


def _task_name() -> str:
    task = asyncio.current_task()
    assert task is not None
    return task.get_name()


class _Watchdog:
    """Leaves the process when a loop hangs, and when the time to stop is over, whatever still runs."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._asked = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def start(self) -> None:
        """Safe in a signal handler: it starts no thread."""
        self._asked.set()

    def _watch(self) -> None:
        looks = 0
        while not self._asked.wait(LOOK_EVERY_S):
            # Looks are counted, not time: a process that was stopped and goes on is given as long as any other.
            looks = looks + 1 if (stale := self._room.health.stale()) else 0
            if looks * LOOK_EVERY_S >= HUNG_AFTER_S:
                self._leave(f"hangs, and is to be started again: no sign of life from {', '.join(stale)}")
        time.sleep(self._room.stop_after_s)
        self._leave(f"did not stop within {self._room.stop_after_s:g} s: leaving")

    def _leave(self, why: str) -> None:
        last = threading.Timer(1.0, os._exit, args=(1,))  # for when even the log is stuck
        last.daemon = True
        last.start()
        _log.error("%s %s", self._room.name, why)
        os._exit(1)
