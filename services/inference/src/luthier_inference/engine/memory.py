"""How much memory is free, and whether an error says that there was none."""

from pathlib import Path

import torch

_NO_LIMIT = 2**62
"""Where nothing says how much there is."""


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can be had now: of the device, or for a CPU of this machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = root / "proc/meminfo"
    if not table.exists():
        return _NO_LIMIT
    return min(_table(table)["MemAvailable:"] * 1024, _left_in_container(root / "sys/fs/cgroup"))


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
