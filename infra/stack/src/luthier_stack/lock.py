"""One runner per home directory, held by a lock that the kernel lets go when the runner dies, however it dies."""

import fcntl
import os
from pathlib import Path

from luthier_stack.errors import HomeInUseError


class HomeLock:
    """An exclusive claim on a home directory."""

    def __init__(self, home: Path) -> None:
        self._path = home / "stack.lock"
        self._home = home
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the claim, or say who has it."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise HomeInUseError(
                f"{self._home} is in use by another runner (process {holder}): stop that one, or set LUTHIER_HOME"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the claim back; the file stays, since removing it would race with the next runner."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
