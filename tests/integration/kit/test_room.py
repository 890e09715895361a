"""A room as its supervisor sees it: signals, exit codes, and how long the end takes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.waiting import until

HEAD = """
import asyncio, os, time, threading
from contextlib import asynccontextmanager
from luthier_common.kit.room import Room, run_room

def say(text):
    print(text, flush=True)

@asynccontextmanager
async def client(name, hangs=False):
    yield name
    if hangs:
        await asyncio.Event().wait()
    say("closed " + name)
"""
GOOD = """
async def main(room):
    await room.enter("first", client("first"))
    await room.enter("second", client("second"))
    async def look():
        say("looked")
    room.spawn("looker", room.every(3600, look))
    room.spawn("reader", asyncio.Event().wait(), grace_s=0)
    say("up")
run_room("api", main)
"""
HURRIED = """
import luthier_common.kit.room as kit
kit.HUNG_AFTER_S, kit.LOOK_EVERY_S = 2.0, 0.2
"""
REFUSES = """
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""


def _start(program: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + program],
        env={"PATH": os.environ["PATH"], "LUTHIER_LOG_FORMAT": "json", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    seen = []
    for text in process.stdout:
        seen.append(text.strip())
        if seen[-1] == line:
            watchdog.cancel()
            return
    pytest.fail(f"never said {line!r}: {seen} {process.stderr.read() if process.stderr else ''}")


def _end(
    process: subprocess.Popen[str], number: int | None = signal.SIGTERM
) -> tuple[float, str, list[dict[str, Any]]]:
    """Seconds from the signal to the exit, what it still said, and its log lines."""
    started = time.monotonic()
    if number is not None:
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return time.monotonic() - started, out, [json.loads(line) for line in err.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_loops_then_clients_and_the_exit_is_clean(number: int) -> None:
    process = _start(GOOD)
    _wait_for(process, "looked")
    took_s, out, lines = _end(process, number)
    assert process.returncode == 0
    assert took_s < 3
    assert out.split("\n")[:2] == ["closed second", "closed first"]
    assert [line["message"] for line in lines] == ["stopping", "stopped"]
    assert {line["service"] for line in lines} == {"api"}


def test_a_crashing_loop_ends_the_process_with_one_and_is_told() -> None:
    process = _start(
        """
async def main(room):
    await room.enter("db", client("db"))
    async def crash():
        raise KeyError("a bug")
    room.spawn("relay", crash())
    await room.until_stopped()
run_room("api", main)
"""
    )
    _, out, lines = _end(process, None)
    assert process.returncode == 1
    assert out == "closed db\n"
    (crash,) = [line for line in lines if line["level"] == "error"]
    assert crash["message"] == "relay crashed"
    assert "KeyError: 'a bug'" in crash["error"]


def test_a_main_that_cannot_start_ends_with_one() -> None:
    process = _start("async def main(room):\n    raise RuntimeError('no database')\nrun_room('api', main)")
    _, _, lines = _end(process, None)
    assert process.returncode == 1
    assert any("no database" in line.get("error", "") for line in lines)


def test_a_main_that_is_done_ends_with_zero() -> None:
    process = _start("async def main(room):\n    say('done')\nrun_room('api', main)")
    _, out, _ = _end(process, None)
    assert (process.returncode, out) == (0, "done\n")


def test_a_main_that_holds_its_clients_closes_them_after_its_loops() -> None:
    process = _start(
        """
async def main(room):
    async with client("db"):
        async def look():
            await room.stopping.wait()
            say("loop ended")
        room.spawn("looker", look())
        say("up")
        await room.until_stopped()
run_room("api", main)
"""
    )
    _wait_for(process, "up")
    _, out, _ = _end(process)
    assert (process.returncode, out) == (0, "loop ended\nclosed db\n")


def test_clients_that_hang_are_given_three_seconds_each() -> None:
    process = _start(
        """
async def main(room):
    await room.enter("good", client("good"))
    await room.enter("bad", client("bad", hangs=True))
    say("up")
    await room.until_stopped()
run_room("api", main)
"""
    )
    _wait_for(process, "up")
    took_s, out, lines = _end(process)
    assert 2.5 < took_s < 6
    assert out == "closed good\n"
    assert process.returncode == 0
    assert any(line["message"].startswith("closing bad: TimeoutError") for line in lines)


def test_a_client_that_lets_a_cancellation_out_keeps_no_other_from_being_closed() -> None:
    process = _start(
        """
@asynccontextmanager
async def careless():
    yield
    task = asyncio.create_task(asyncio.sleep(3600))
    task.cancel()
    await task
async def main(room):
    await room.enter("good", client("good"))
    await room.enter("bad", careless())
    say("up")
    await room.until_stopped()
run_room("api", main)
"""
    )
    _wait_for(process, "up")
    _, out, lines = _end(process)
    assert (process.returncode, out) == (0, "closed good\n")
    assert [line["message"] for line in lines] == ["stopping", "closing bad: CancelledError: ", "stopped"]


@pytest.mark.parametrize(
    "stuck",
    [
        "await asyncio.to_thread(time.sleep, 3600)",
        "time.sleep(3600)",
        REFUSES,
    ],
    ids=["a thread that never ends", "a blocked loop", "a task that refuses"],
)
def test_nothing_holds_the_process_longer_than_its_budget(stuck: str) -> None:
    program = f"""
async def stay(room):
    await asyncio.sleep(0.1)
    say("stuck")
    {stuck}
async def main(room):
    room.spawn("stuck", stay(room))
    await room.stopping.wait()
run_room("api", main, stop_after_s=4)
"""
    process = _start(program)
    _wait_for(process, "stuck")
    took_s, _, lines = _end(process)
    assert took_s < 6
    if process.returncode == 1:
        assert any("did not stop within 4 s" in line["message"] for line in lines)


@pytest.mark.parametrize(
    "hang", ["time.sleep(3600)", "await asyncio.Event().wait()"], ids=["a blocked loop", "work that never ends"]
)
def test_a_process_that_hangs_ends_itself(hang: str) -> None:
    process = _start(
        HURRIED
        + f"""
async def main(room):
    async def work():
        say("hangs")
        {hang}
    room.spawn("relay", room.every(0.1, work, stale_after_s=0.2))
run_room("api", main)
"""
    )
    _wait_for(process, "hangs")
    took_s, _, lines = _end(process, None)
    assert process.returncode == 1
    assert took_s > 1  # of two: it is read a moment later that it hangs
    assert lines[-1]["message"] == "api hangs, and is to be started again: no sign of life from relay"


def test_a_process_that_was_stopped_for_long_goes_on() -> None:
    process = _start(
        HURRIED
        + """
async def main(room):
    async def work():
        say("works")
    room.spawn("relay", room.every(0.1, work, stale_after_s=0.2))
run_room("api", main)
"""
    )
    _wait_for(process, "works")
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)  # twice as long as a hang may last
    process.send_signal(signal.SIGCONT)
    time.sleep(3)  # and long enough to end a process that hangs
    _, _, lines = _end(process)
    assert process.returncode == 0
    assert [line["message"] for line in lines] == ["stopping", "stopped"]


def test_a_thread_that_hangs_in_a_call_to_a_dead_server_does_not_hold_up_the_exit() -> None:
    """Drivers have pools of threads; the end of an interpreter waits for all of them."""
    process = _start(
        """
from concurrent.futures import ThreadPoolExecutor
async def main(room):
    pool = ThreadPoolExecutor(1)
    pool.submit(time.sleep, 3600)
    say("up")
    await room.stopping.wait()
run_room("api", main)
"""
    )
    _wait_for(process, "up")
    took_s, _, lines = _end(process)
    assert process.returncode == 0
    assert took_s < 3
    assert lines[-1]["message"] == "stopped"


async def test_health_is_served_and_says_what_is_missing(free_port: Callable[[], int], tmp_path: Path) -> None:
    port = free_port()
    opened = tmp_path / "opened"
    process = _start(
        """
async def main(room):
    async def no_node():
        return "no live node"
    room.health.require("trainer", no_node)
    say("opening")
    while not os.path.exists(os.environ["OPENED"]):
        await asyncio.sleep(0.02)
    room.spawn("idle", room.stopping.wait())
run_room("scheduler", main)
""",
        LUTHIER_HEALTH_PORT=str(port),
        OPENED=str(opened),
    )
    await asyncio.to_thread(_wait_for, process, "opening")

    def get(path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    assert await asyncio.to_thread(get, "/healthz") == (200, {"status": "ok"})
    status, body = await asyncio.to_thread(get, "/readyz")
    assert (status, body["missing"]) == (503, {"room": "starting"})
    opened.touch()

    async def missing() -> Any:
        status, body = await asyncio.to_thread(get, "/readyz")
        assert status == 503
        return None if body["missing"] == {"room": "starting"} else body["missing"]

    assert await until(missing, what="the room has started") == {"trainer": "no live node"}
    took_s, _, _ = await asyncio.to_thread(_end, process)
    assert process.returncode == 0
    assert took_s < 4


def test_a_dead_collector_does_not_hold_up_the_end(free_port: Callable[[], int]) -> None:
    process = _start(GOOD, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    _wait_for(process, "looked")
    took_s, _, _ = _end(process)
    assert process.returncode == 0
    assert took_s < 5
