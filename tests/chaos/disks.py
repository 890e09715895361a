"""Small disks of their own for run directories and objects, so that they can be filled without harm to the machine."""

import asyncio
import contextlib
import errno
import os
import time
from pathlib import Path

MIB = 1024 * 1024
RUNS_MIB = 64
OBJECTS_MIB = 1024
_BLOCK = bytes(64 * 1024)
_REFILL_S = 0.1


class DiskRefusedError(Exception):
    """This machine does not let us mount a disk."""


class SmallDisk:
    """A tmpfs at `path`; `full` keeps it full for a while."""

    def __init__(self, path: Path, size_mib: int) -> None:
        self.path = path
        self._size_mib = size_mib
        self._filler = path / "filler"
        self.num_refusals = 0
        """How often the disk answered that it is full, to us."""

    async def mount(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        await _run("mount", "-t", "tmpfs", "-o", f"size={self._size_mib}m,mode=0700", "luthier-chaos", str(self.path))

    async def unmount(self) -> None:
        with contextlib.suppress(DiskRefusedError):
            await _run("umount", "-l", str(self.path))

    async def full(self, seconds: float) -> None:
        """Take what room there is, again and again, then give it back."""
        await asyncio.to_thread(self._keep_full, seconds)

    def _keep_full(self, seconds: float) -> None:
        """In one thread from beginning to end: nothing is taken once it was given back."""
        until_s = time.monotonic() + seconds
        try:
            while time.monotonic() < until_s:
                self._take_all()
                time.sleep(_REFILL_S)
        finally:
            self._filler.unlink(missing_ok=True)

    def _take_all(self) -> None:
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        with self._filler.open("ab") as filler, contextlib.suppress(OSError):
            os.posix_fallocate(filler.fileno(), filler.tell(), max(1, free - MIB))
        try:
            with self._filler.open("ab", buffering=0) as filler:
                while True:
                    filler.write(_BLOCK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.num_refusals += 1


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        raise DiskRefusedError(said.decode(errors="replace").strip() or f"{command[0]} ended with {process.returncode}")
