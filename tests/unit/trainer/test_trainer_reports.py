"""Progress lines, and the end of a run that makes none."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from luthier_trainer.domain import Assignment, Claim
from luthier_trainer.executor import LocalChild
from luthier_trainer.insisting import Insist
from luthier_trainer.protocol import Evaluated, Progress, parse_progress
from luthier_trainer.telling import Teller
from luthier_trainer.training.progress import ProgressWriter

STALLED = """
import faulthandler, time
from luthier_trainer.training.watchdog import Watchdog
faulthandler.enable()
dog = Watchdog(stall_after_s=0.2, load_s=0.2, on_stall=lambda: print("stalled", flush=True))
time.sleep(60)
"""


PIECES = """
import sys, time
from luthier_trainer.training.watchdog import Watchdog
dog = Watchdog(stall_after_s=1.0, load_s=30, on_stall=lambda: print("stalled", flush=True))
work, ahead, files = map(int, sys.argv[1:4])
for _ in range(5):
    dog.beat(work)
    time.sleep(0.05)
if files:
    dog.beat_before_files()
else:
    dog.beat(ahead)
time.sleep(float(sys.argv[4]))
dog.beat()
dog.close()
print("done")
"""


def make_report(step: int) -> Progress:
    return Evaluated(step=step, valid_loss=1.0, valid_mean_token_accuracy=0.5, full=True)


def test_reports_arrive_in_order_and_whole() -> None:
    reading, writing = os.pipe()
    out = ProgressWriter(writing)
    for step in range(50):
        out.put(make_report(step))
    out.close()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert [parse_progress(line) for line in stream] == [make_report(step) for step in range(50)]


def test_a_reader_that_sleeps_does_not_hold_up_a_step() -> None:
    reading, writing = os.pipe()
    out = ProgressWriter(writing)
    for step in range(5000):
        out.put(make_report(step))
    lines: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as stream:
            lines.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    out.close()
    os.close(writing)
    reader.join()
    assert len(lines) == 5000


def test_a_reader_that_is_gone_does_not_fail_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    out = ProgressWriter(writing)
    out.put(make_report(1))
    out.close()
    os.close(writing)


def test_a_run_without_progress_is_aborted_with_every_stack() -> None:
    done = subprocess.run([sys.executable, "-c", STALLED], capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == b"stalled\n"
    assert b"time.sleep" not in done.stdout
    assert b'File "<string>"' in done.stderr


@pytest.mark.parametrize(
    ("work", "ahead", "files", "code"),
    [(100, 8000, 0, 0), (100, 100, 0, -signal.SIGABRT), (100, 0, 1, 0), (0, 8000, 0, 0)],
    ids=["a long row after short ones", "one like those before", "a save", "the first forward of all"],
)
def test_a_piece_of_work_may_take_as_long_as_its_tokens_ask(work: int, ahead: int, files: int, code: int) -> None:
    last_piece_s = 60 if code else 1.5
    command = [sys.executable, "-c", PIECES, str(work), str(ahead), str(files), str(last_piece_s)]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == code
    assert done.stdout == (b"stalled\n" if code else b"done\n")


async def test_a_childs_endless_line_ends_the_run_and_does_not_hang_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    command = "import os, sys; os.write(int(sys.argv[1]), b'x' * 3_000_000)"
    child = LocalChild(
        await asyncio.create_subprocess_exec(sys.executable, "-c", command, str(writing), pass_fds=(writing,)), reading
    )
    os.close(writing)
    run = cast("Assignment", SimpleNamespace(last_step=0, total_steps=6, claim=Claim("job", 1, (0,), None)))
    nothing = cast("Any", None)
    teller = Teller(run, nothing, nothing, Insist(1.0), tmp_path, every_s=1.0)
    async with asyncio.timeout(20):
        with pytest.raises(ValueError, match="limit"):
            await teller.follow(child.reports())
        child.kill()
        await child.wait()
