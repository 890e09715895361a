"""Fail points: off by default, exact when asked for."""

import asyncio
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from builders.packages import PACKAGES
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import (
    FailPointError,
    ReplyLostError,
    configure_failpoints,
    failpoint,
    failpoint_names,
    failpoint_sync,
)


@pytest.fixture(autouse=True)
def all_off() -> Iterator[None]:
    yield
    configure_failpoints()


async def test_nothing_happens_unless_asked() -> None:
    configure_failpoints()
    await failpoint("a.b")
    failpoint_sync("a.b")


async def test_the_named_place_raises_and_others_pass() -> None:
    configure_failpoints("relay.after_send=raise; projector.*=lost")
    with pytest.raises(FailPointError) as caught:
        await failpoint("relay.after_send")
    assert isinstance(caught.value, TransientError)
    with pytest.raises(ReplyLostError):
        failpoint_sync("projector.after_insert")
    await failpoint("relay.before_send")


async def test_a_delay_pauses_without_blocking_the_loop() -> None:
    configure_failpoints("slow=delay:0.1")
    started = time.monotonic()
    pausing = [asyncio.create_task(failpoint("slow")) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in pausing)
    await asyncio.gather(*pausing)
    assert time.monotonic() - started >= 0.1
    started = time.monotonic()
    failpoint_sync("slow")
    assert time.monotonic() - started >= 0.1


async def test_a_freeze_stops_everything_on_the_loop() -> None:
    configure_failpoints("stuck=freeze:0.2*1")
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.05)
    await failpoint("stuck")
    await asyncio.sleep(0.05)
    beating.cancel()
    assert max(after - before for before, after in pairwise(beats)) >= 0.2


async def test_a_count_bounds_the_faults() -> None:
    configure_failpoints("a=raise*2")
    outcomes = [await _raises("a") for _ in range(5)]
    assert outcomes == [True, True, False, False, False]


async def test_the_seed_repeats_the_dice() -> None:
    async def history(seed: str) -> list[bool]:
        configure_failpoints("a=raise:0.5", seed)
        return [await _raises("a") for _ in range(40)]

    first = await history("7")
    assert 5 < sum(first) < 35
    assert await history("7") == first
    assert await history("8") != first


@pytest.mark.parametrize(
    "spec", ["a", "a=explode", "a=kill:2", "a=delay", "a=freeze", "a=kill:0.1:0.2", "a=raise:0.1*x", "=kill"]
)
def test_a_bad_rule_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"rule|seconds|probability"):
        configure_failpoints(spec)


async def test_the_log_tells_what_was_reached(tmp_path: Path) -> None:
    configure_failpoints("a=raise*1", log_path=str(tmp_path / "hits"))
    for name in ("a", "a", "b", "b"):
        await _raises(name)
    lines = [line.rsplit(" ", 1)[0] for line in (tmp_path / "hits").read_text().splitlines()]
    assert lines == ["a pass", "a raise", "b pass"]


def test_a_kill_from_the_environment_strikes_once_over_restarts(tmp_path: Path) -> None:
    program = "from luthier_common.kit.failpoints import failpoint_sync as f; f('start'); print('through')"
    environ = {"LUTHIER_FAILPOINTS": "start=kill*1", "LUTHIER_FAILPOINTS_LOG": str(tmp_path / "hits")}
    runs = [subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True) for _ in range(2)]
    assert [run.returncode for run in runs] == [-9, 0]
    assert runs[1].stdout == b"through\n"


def test_every_name_in_the_source_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sample_room"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text(
        textwrap.dedent(
            """
            async def work():
                await failpoint("room.before")
                failpoint_sync("room.after")
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert failpoint_names("sample_room") == {"room.after": "work.py:4", "room.before": "work.py:3"}
    (package / "work.py").write_text("failpoint(name)")
    with pytest.raises(ValueError, match="literal"):
        failpoint_names("sample_room")
    (package / "work.py").write_text("failpoint('room.twice')\nfailpoint('room.twice')")
    with pytest.raises(ValueError, match="two places"):
        failpoint_names("sample_room")


def test_every_name_of_the_product_says_its_room_and_when() -> None:
    names = failpoint_names(*PACKAGES)
    assert {"relay.after_send", "projector.after_insert", "trainer.mid_save", "registry.mid_copy"} < names.keys()
    assert [name for name in names if not re.fullmatch(r"[a-z_0-9]+\.(before|mid|after)_[a-z_]+", name)] == []


async def _raises(name: str) -> bool:
    try:
        await failpoint(name)
    except FailPointError:
        return True
    return False
