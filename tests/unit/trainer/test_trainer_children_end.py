"""The end of children, many at once, beside threads that write files: each closes what is its own, once."""

import asyncio
import sys
import threading
from pathlib import Path

import uvloop

from luthier_trainer.executor import LocalExecutor

NUM_CHILDREN = 60
AT_ONCE = 6
TRUE = ("/bin/true",)


def write_files(directory: Path, is_over: threading.Event, damage: list[str]) -> None:
    """Small files again and again; what was lost of them is told."""
    number = 0
    while not is_over.is_set():
        number += 1
        path = directory / f"{threading.get_ident()}-{number % 50}"
        try:
            with path.open("wb") as file:
                file.write(b"x" * 100)
            if path.stat().st_size != 100:
                damage.append(f"{path.stat().st_size} bytes of 100")
        except OSError as error:
            damage.append(str(error))


async def follow(executor: LocalExecutor, directory: Path) -> None:
    directory.mkdir()
    child = await executor.start(directory, (), 1)
    async for _ in child.reports():
        pass
    assert await child.wait() == 0


async def follow_all(root: Path) -> None:
    executor, waiting = LocalExecutor(TRUE), iter(range(NUM_CHILDREN))

    async def work() -> None:
        for number in waiting:
            await follow(executor, root / str(number))

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def test_the_end_of_a_child_closes_no_file_of_another_thread(tmp_path: Path) -> None:
    is_over, damage = threading.Event(), list[str]()
    directory = tmp_path / "files"
    directory.mkdir()
    threads = [threading.Thread(target=write_files, args=(directory, is_over, damage)) for _ in range(4)]
    was, _ = sys.getswitchinterval(), sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(follow_all(tmp_path))
    finally:
        sys.setswitchinterval(was)
        is_over.set()
        for thread in threads:
            thread.join()
    assert damage == []
