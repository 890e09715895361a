"""How a run's process is started: a child on this node. The one seam for other ways (a Ray cluster)."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from luthier_trainer.protocol import PARENT_PID_VARIABLE, PROGRESS_FD_VARIABLE, Progress, parse_progress
from luthier_trainer.workplace import PID_FILE

log = logging.getLogger(__name__)
LOG_FILE = "child.log"
_LINE_LIMIT_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_KEPT = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES",
)
"""A child has no credentials: of our environment it gets these names only."""


class Child(Protocol):
    """A running training process."""

    def reports(self) -> AsyncIterator[Progress]:
        """Its progress, until it ends."""
        ...

    def ask_pause(self) -> None:
        """Have it drop the step that it is in, save the one before, and end."""
        ...

    def kill(self) -> None: ...

    @property
    def has_ended(self) -> bool: ...

    async def wait(self) -> int:
        """Its exit code, once it is reaped; negative: the signal that ended it."""
        ...


class Executor(Protocol):
    async def start(self, run_dir: Path, gpus: tuple[str, ...], num_threads: int) -> Child: ...


class LocalExecutor:
    """Children of this process. They end with it: the kernel sees to that."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "luthier_trainer.training")) -> None:
        self._command = command

    async def start(self, run_dir: Path, gpus: tuple[str, ...], num_threads: int) -> Child:
        """Start the command with `RUN_DIR`; `gpus`, by UUID, are the only ones that it sees."""
        reading, writing = os.pipe()
        own = {
            PROGRESS_FD_VARIABLE: str(writing),
            PARENT_PID_VARIABLE: str(os.getpid()),
            "HOME": str(run_dir),
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "OMP_NUM_THREADS": str(num_threads),
            # Threads that spin while they wait slow a run down several times where cores are shared.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        process: asyncio.subprocess.Process | None = None
        try:
            with (run_dir / LOG_FILE).open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(run_dir),
                    env={**kept, **own},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing,),
                    start_new_session=True,
                )
            (run_dir / PID_FILE).write_text(str(process.pid))
        except BaseException:
            os.close(reading)
            if process is not None:
                unclaimed = LocalChild(process, reading)
                unclaimed.kill()
                await unclaimed.wait()
            raise
        finally:
            os.close(writing)
        return LocalChild(process, reading)


class LocalChild:
    """A process on this machine."""

    def __init__(self, process: asyncio.subprocess.Process, progress: int) -> None:
        self._process = process
        self._progress = progress
        self._is_swept = False

    async def reports(self) -> AsyncIterator[Progress]:
        """Lines until the child's end; one that cannot be read is logged and skipped.

        Not by `connect_read_pipe`: uvloop closes the number of a pipe twice, and between the two another thread may
        have opened a file under it, which then loses its bytes (uvloop 0.23, `UVSocketHandle._close`).
        """
        lines = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._progress, self._feed, lines)
        try:
            while line := await lines.readline():
                try:
                    yield parse_progress(line)
                except ValidationError:
                    log.warning("a progress line cannot be read", extra={"bytes": len(line)})
        finally:
            loop.remove_reader(self._progress)
            os.close(self._progress)

    def _feed(self, lines: asyncio.StreamReader) -> None:
        if content := os.read(self._progress, _READ_BYTES):
            lines.feed_data(content)
        else:
            asyncio.get_running_loop().remove_reader(self._progress)
            lines.feed_eof()

    def ask_pause(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Its whole group; once more after its end, for what it left behind, and never again: ids are reused."""
        if self._is_swept:
            return
        self._is_swept = self.has_ended
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> int:
        return await self._process.wait()
