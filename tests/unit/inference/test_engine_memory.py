"""How much memory answers may take, on machines and in containers as they are."""

from pathlib import Path

import pytest
import torch

from luthier_inference.domain import Generation
from luthier_inference.engine.line import Ticket
from luthier_inference.engine.memory import REGAIN_AFTER_S, CacheBudget, free_bytes, is_out_of_memory

CPU = torch.device("cpu")
GIB = 1024**3


def make_machine(root: Path, *, limit: str | None = None) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable:   8388608 kB\nHugePages_Total: 0\n")
    if limit is not None:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.stat").write_text(f"anon {GIB}\nfile {3 * GIB}\n")
    return root


@pytest.mark.parametrize(("limit", "free"), [(None, 8), ("max", 8), (str(4 * GIB), 3), (str(16 * GIB), 8)])
def test_what_is_free_is_what_the_machine_and_the_container_leave(tmp_path: Path, limit: str | None, free: int) -> None:
    """Files that the container has read do not count: they give way."""
    assert free_bytes(CPU, make_machine(tmp_path, limit=limit)) == free * GIB


def test_a_machine_that_does_not_say_sets_no_limit(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path) > 2**60


def test_what_torch_keeps_on_a_gpu_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: it says what one said whose base had just made room for another."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 16 * GIB)
    assert free_bytes(torch.device("cuda:0")) == 56 * GIB


def test_want_of_memory_is_known_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("a kernel failed"))


def test_an_engine_takes_on_more_again_when_memory_was_short_for_a_moment() -> None:
    now_s = 1000.0
    budget = CacheBudget(1_000_000, bytes_of_id=10, now_s=lambda: now_s)
    asked = Generation(prompt_ids=tuple(range(20)))
    two = [Ticket(asked, lambda _told: None) for _ in range(2)]
    assert budget.has_room(two)
    budget.shrink(two)
    assert not budget.has_room(two)
    now_s += REGAIN_AFTER_S + 1
    assert budget.has_room(two)
