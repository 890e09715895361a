"""How a run's process is started, and that nothing is left of one that cannot be handed over."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from luthier_trainer.executor import LocalExecutor
from luthier_trainer.workplace import PID_FILE


def children_that_name(directory: Path) -> list[int]:
    """Threads and other children may end meanwhile."""
    lists, found = list[list[str]](), list[int]()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            lists.append(path.read_text().split())
    for pid in (int(pid) for pids in lists for pid in pids):
        with suppress(OSError):
            if os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def open_pipes() -> set[str]:
    """Sockets come and go: of other tests that share this process."""
    links = set[str]()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.add(str(path.readlink()))
    return {link for link in links if link.startswith("pipe:")}


async def test_a_child_whose_number_cannot_be_noted_is_killed_and_reaped(tmp_path: Path) -> None:
    (tmp_path / PID_FILE).mkdir()
    before = open_pipes()
    with pytest.raises(IsADirectoryError):
        await LocalExecutor((sys.executable, "-c", "import time; time.sleep(600)")).start(tmp_path, (), 1)
    assert children_that_name(tmp_path) == []
    assert open_pipes() <= before
