"""Whether the kernel killed a process here for want of memory: what its exit code alone does not say."""

import logging
import signal
from pathlib import Path

log = logging.getLogger(__name__)


class OomKills:
    """Made before a child starts; `explains` its end. The child shares this process's control group."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = count_oom_kills(root)

    def explains(self, exit_code: int) -> bool:
        """Whether the kernel killed for memory meanwhile, so that a SIGKILL nobody here sent was its."""
        if exit_code != -signal.SIGKILL or self._before is None:
            return False
        now = count_oom_kills(self._root)
        return now is not None and now > self._before


def count_oom_kills(root: Path = Path("/")) -> int | None:
    """Processes of our control group that were ever killed for memory; None where the kernel does not count them."""
    for path in _counters(root):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdecimal():
                return int(count)
    return None


def warn_of_group_kills(root: Path = Path("/")) -> None:
    """Say so where one run that is too large ends this service and all its runs: nobody could tell which it was."""
    for path in _counters(root):
        try:
            is_one = path.with_name("memory.oom.group").read_text().strip() == "1"
        except OSError:
            continue
        if is_one:
            log.warning(
                "when memory runs out, the kernel kills the trainer and all its runs at once (memory.oom.group is 1); "
                "in Kubernetes singleProcessOOMKill: true in the kubelet's configuration has it kill only one process"
            )
        return


def _counters(root: Path) -> list[Path]:
    """Where the count may stand: by our group's path on a host, at the top in a container; version 2, then 1."""
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for _, controllers, path in sorted(line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            found += [groups / path.lstrip("/") / "memory.events", groups / "memory.events"]
        elif "memory" in controllers.split(","):
            v1 = groups / "memory"
            found += [v1 / path.lstrip("/") / "memory.oom_control", v1 / "memory.oom_control"]
    return found
