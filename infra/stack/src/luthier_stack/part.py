"""One supervised process: started, watched, started again when it dies, stopped in order."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier_stack import launch
from luthier_stack.errors import PartFailedError
from luthier_stack.logs import copy_lines, open_for_append, show, tail

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0
STEADY_AFTER_S = 30.0
STARTUP_DEATHS = 4
POLL_S = 0.1
HEALTH_INTERVAL_S = 10.0
UNHEALTHY_AFTER_S = 60.0
_ENDING = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV}


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """What to run and how to tell that it works."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    log_path: Path
    is_alive: Callable[[], Awaitable[bool]]
    is_ready: Callable[[], Awaitable[bool]]
    settle: Callable[[], Awaitable[bool]] | None = None
    """Done after every start, once the process answers and before it counts as alive; tried again until true."""
    stop_budget_s: float = 15.0
    longest_delay_s: float = LONGEST_DELAY_S
    """After many quick deaths it is started again this much later."""
    echo: bool = False
    """Whether its lines are shown on the terminal."""
    announce: bool = False
    """Whether its deaths and restarts are told on the terminal."""


class Part:
    """A process that is kept running until it is told to stop."""

    def __init__(self, spec: PartSpec) -> None:
        self.spec = spec
        self.restart_count = 0
        self._alive = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._deaths_before_alive = 0
        self._last_trouble = ""
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Begin to keep it running; does not wait."""
        if self._supervision is None or self._supervision.done():
            self._stop_asked.clear()
            self._alive.clear()
            self._deaths_before_alive = 0
            self._supervision = asyncio.create_task(self._supervise(), name=f"supervise {self.spec.name}")

    def kill(self, number: signal.Signals) -> None:
        """Send a signal; after a fatal one the part is not alive again before it has been restarted."""
        if (pid := self.pid) is None:
            raise PartFailedError(f"{self.spec.name} is not running")
        if number in _ENDING:
            self._alive.clear()
        os.kill(pid, number)

    async def wait_alive(self, timeout_s: float) -> None:
        """Return when it answers, or fail with its last words."""
        deadline = time.monotonic() + timeout_s
        while not self._alive.is_set():
            if self._deaths_before_alive >= STARTUP_DEATHS or time.monotonic() > deadline:
                raise PartFailedError(
                    f"{self.spec.name} did not start; {self.spec.log_path} ends with:\n{tail(self.spec.log_path)}"
                )
            await asyncio.sleep(POLL_S / 2)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers and says that it can do its work."""
        deadline = time.monotonic() + timeout_s
        await self.wait_alive(timeout_s)
        while not (self._alive.is_set() and await self.spec.is_ready()):
            if time.monotonic() > deadline:
                raise PartFailedError(
                    f"{self.spec.name} is not ready after {timeout_s:.0f} s; {self.spec.log_path} ends with:\n"
                    f"{tail(self.spec.log_path)}"
                )
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ask it to end, wait for its budget, then kill it with whatever it left in its process group."""
        self._stop_asked.set()
        self._alive.clear()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self.spec.stop_budget_s)
            except TimeoutError:
                self._say(f"did not stop within {self.spec.stop_budget_s:.0f} s: killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self._supervision is not None:
            await self._supervision
            self._supervision = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    async def _supervise(self) -> None:
        quick_deaths = 0
        while not self._stop_asked.is_set():
            started_at = time.monotonic()
            try:
                ended = _describe(await self._run_once())
            except OSError as error:  # no disk, no room for a process: tried again like a death
                ended = f"cannot be run: {error.strerror}"
            if self._stop_asked.is_set():
                return
            if not self._alive.is_set():
                self._deaths_before_alive += 1
            self._alive.clear()
            self.restart_count += 1
            quick_deaths = 1 if time.monotonic() - started_at > STEADY_AFTER_S else quick_deaths + 1
            delay_s = min(self.spec.longest_delay_s, FIRST_DELAY_S * 2 ** min(quick_deaths - 1, 10))
            self._say(f"{ended}; starting it again in {delay_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), delay_s)

    async def _run_once(self) -> int:
        log = open_for_append(self.spec.log_path)
        try:
            process = await asyncio.create_subprocess_exec(
                *tied_to_this_process(self.spec.command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.spec.echo else log,
                stderr=subprocess.STDOUT,
                env=dict(self.spec.env),
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._process = process
        if self._stop_asked.is_set():
            process.kill()
        chores = [asyncio.create_task(self._watch(process))]
        if process.stdout is not None:
            chores.append(asyncio.create_task(copy_lines(self.spec.name, process.stdout, self.spec.log_path)))
        try:
            return await process.wait()
        finally:
            chores[0].cancel()
            await asyncio.wait(chores, timeout=1.0)
            for chore in chores:
                chore.cancel()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Note when it first answers; later kill it when it has not answered for long."""
        while not await self._answers_and_settles():  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(POLL_S)
        self._alive.set()
        self._deaths_before_alive = 0
        answered_at = time.monotonic()
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            if await self.spec.is_alive():
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at > UNHEALTHY_AFTER_S:
                self._say(f"has not answered for {UNHEALTHY_AFTER_S:.0f} s: killed")
                process.kill()
                return

    async def _answers_and_settles(self) -> bool:
        try:
            if not await self.spec.is_alive():
                return False
            return self.spec.settle is None or await self.spec.settle()
        except Exception as error:
            self._say_once(f"is not settled yet: {type(error).__name__}: {error}")
            return False

    def _say_once(self, text: str) -> None:
        if text != self._last_trouble:
            self._last_trouble = text
            self._say(text)

    def _say(self, text: str) -> None:
        if self.spec.announce:
            show("stack", f"{self.spec.name} {text}")


def tied_to_this_process(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command, wrapped so that it is killed when this process dies."""
    return (sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command)


def _describe(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"exited with status {returncode}"
