"""A file is written whole or not at all, and what was begun goes away, also where the disk is full."""

import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier_common.kit.objects import write_file


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond that, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def some(num_bytes: int) -> AsyncIterator[bytes]:
    yield b"x" * num_bytes


@pytest.mark.parametrize("num_bytes", [5_000, 50_000])
async def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, num_bytes: int) -> None:
    """What fits into the writer's buffer is refused only when it is closed."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with room_for(1_000), pytest.raises(OSError, match="File too large"):
        await write_file(tmp_path / "file", some(num_bytes), scratch)
    assert [*scratch.iterdir()] == []
    assert not (tmp_path / "file").exists()
    assert (await write_file(tmp_path / "file", some(num_bytes), scratch)).bytes == num_bytes
