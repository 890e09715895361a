"""How much memory is free, what of it running answers may take, and whether an error says that there was none."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from luthier_inference.engine.line import Ticket

logger = logging.getLogger(__name__)
_KEPT_SHARE = 0.9
"""Of what was too much: so many rows, so long, are not had at once again."""
REGAIN_AFTER_S = 300.0
"""What took the memory may have been something that is over."""
_NO_LIMIT = 2**62
"""Where nothing says how much there is."""


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can be had now: of the device, or for a CPU of this machine or its container."""
    if device.type == "cuda":
        # What torch holds for later counts as used there, and is given to whoever asks next.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    table = root / "proc/meminfo"
    if not table.exists():
        return _NO_LIMIT
    return min(_table(table)["MemAvailable:"] * 1024, _left_in_container(root / "sys/fs/cgroup"))


def release_unused() -> None:
    """What closed engines held is free for everybody."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where there is no GPU, or it was not used yet


def _left_in_container(group: Path) -> int:
    limit = group / "memory.max"
    said = limit.read_text().strip() if limit.exists() else "max"
    # Cached files count as used there, and give way when memory is wanted: only what is anonymous stays.
    return _NO_LIMIT if said == "max" else max(0, int(said) - _table(group / "memory.stat")["anon"])


def _table(path: Path) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was wanting. torch says so by a type for accelerators, and only by its text for a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class CacheBudget:
    """The memory for keys and values of rows, each of which takes as much as the longest beside it."""

    def __init__(self, max_bytes: int, bytes_of_id: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = self._most_bytes = max_bytes
        self._bytes_of_id = bytes_of_id
        self._now_s = now_s
        self._shrunk_at_s = 0.0

    def has_room(self, tickets: Sequence[Ticket], num_more: int = 0) -> bool:
        """Whether these may be had at once, each with so many more ids. One alone is always tried."""
        if self.max_bytes < self._most_bytes and self._now_s() - self._shrunk_at_s > REGAIN_AFTER_S:
            self.max_bytes = self._most_bytes
        return len(tickets) == 1 or self._num_bytes(tickets, num_more) <= self.max_bytes

    def shrink(self, tickets: Sequence[Ticket]) -> None:
        """Memory ran out with these: there is less of it than was thought, for a while."""
        self.max_bytes, self._shrunk_at_s = int(self._num_bytes(tickets) * _KEPT_SHARE), self._now_s()
        logger.warning("memory was short: fewer answers are made at once", extra={"cache_bytes": self.max_bytes})

    def _num_bytes(self, tickets: Sequence[Ticket], num_more: int = 0) -> int:
        longest = max(ticket.num_ids for ticket in tickets) + num_more
        return len(tickets) * longest * self._bytes_of_id
