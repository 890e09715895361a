"""The node's directory: one process at a time works in it, and what a dead one left behind is ended and removed."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier_trainer.domain import Claim

PID_FILE = "child.pid"
_IDENTITY_FILE = ".identity"
_GONE_AFTER_S = 10.0


class WorkplaceTakenError(RuntimeError):
    """Another trainer of the same name works in this home."""


class Workplace:
    """`HOME/trainer/NODE/`: a directory per run."""

    def __init__(self, home: Path, node: str) -> None:
        self._root = (home / "trainer" / node).absolute()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory for this process; WorkplaceTakenError when another one does."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._root / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise WorkplaceTakenError(f"another trainer works in {self._root}") from error
            yield
        finally:
            os.close(lock)

    def identity(self) -> str:
        """Tells this directory from that of another machine's node of the same name; made once."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._root / _IDENTITY_FILE
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(secrets.token_hex(8))
            fresh.replace(path)
        return path.read_text()

    def clear(self) -> None:
        """End what is left of children (they die with their parent, so this finds none but a lost race); remove all."""
        for directory in self._runs():
            with contextlib.suppress(OSError, ValueError):
                _end_child(int((directory / PID_FILE).read_text()), directory)
            shutil.rmtree(directory, ignore_errors=True)

    def make(self, claim: Claim) -> Path:
        """A fresh directory for a run."""
        directory = self.path_of(claim)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, mode=0o700)
        return directory

    def remove(self, claim: Claim) -> None:
        shutil.rmtree(self.path_of(claim), ignore_errors=True)

    def path_of(self, claim: Claim) -> Path:
        return self._root / f"{claim.job_id}-a{claim.attempt}"

    def _runs(self) -> list[Path]:
        return [path for path in self._root.glob("*") if path.is_dir()]


def _end_child(pid: int, directory: Path) -> None:
    """Kill a process whose command line names this run directory; wait until it is gone."""
    command = Path(f"/proc/{pid}/cmdline")
    deadline = time.monotonic() + _GONE_AFTER_S
    while os.fsencode(directory) in command.read_bytes() and time.monotonic() < deadline:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
