"""A process that the kernel killed for memory is told from one that crashed."""

from pathlib import Path

import pytest

from luthier_trainer.memory import OomKills, count_oom_kills, warn_of_group_kills

IN_CONTAINER = ("0::/\n", "sys/fs/cgroup/memory.events")
ON_HOST = ("0::/system.slice/luthier.service\n", "sys/fs/cgroup/system.slice/luthier.service/memory.events")
VERSION_1 = ("9:name=systemd:/\n4:cpu,memory:/docker/ab\n0::/\n", "sys/fs/cgroup/memory/docker/ab/memory.oom_control")
VERSION_1_IN_CONTAINER = ("4:memory:/docker/ab\n", "sys/fs/cgroup/memory/memory.oom_control")


def write_count(root: Path, groups: str, counter: str, count: int) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / counter).parent.mkdir(parents=True, exist_ok=True)
    (root / counter).write_text(f"low 0\noom 7\noom_kill {count}\n")


@pytest.mark.parametrize(("groups", "counter"), [IN_CONTAINER, ON_HOST, VERSION_1, VERSION_1_IN_CONTAINER])
def test_a_kill_for_memory_explains_the_end(tmp_path: Path, groups: str, counter: str) -> None:
    write_count(tmp_path, groups, counter, 3)
    kills = OomKills(tmp_path)
    assert not kills.explains(-9)
    write_count(tmp_path, groups, counter, 4)
    assert kills.explains(-9)
    assert not kills.explains(-6)
    assert not kills.explains(30)


def test_where_nothing_is_counted_nothing_is_explained(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path) is None
    assert not OomKills(tmp_path).explains(-9)


@pytest.mark.parametrize(("oom_group", "num_warnings"), [("1\n", 1), ("0\n", 0), (None, 0)])
def test_the_trainer_says_when_one_run_would_end_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, oom_group: str | None, num_warnings: int
) -> None:
    """The kubelet sets memory.oom.group in each container, from 1.28 on, unless it is told not to."""
    write_count(tmp_path, *IN_CONTAINER, 0)
    if oom_group is not None:
        (tmp_path / "sys/fs/cgroup/memory.oom.group").write_text(oom_group)
    warn_of_group_kills(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * num_warnings
    assert all("singleProcessOOMKill: true" in record.message for record in caplog.records)


def test_this_machine_can_be_read() -> None:
    assert (count_oom_kills() or 0) >= 0
