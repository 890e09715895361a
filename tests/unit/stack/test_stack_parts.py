"""The runner's pure parts."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from luthier_stack.binaries import find_mongod
from luthier_stack.errors import ServerUnavailableError
from luthier_stack.logs import copy_lines, readable
from luthier_stack.part import tied_to_this_process
from luthier_stack.secret import secret_in
from luthier_stack.settings import StackSettings


def test_services_may_be_given_as_one_text() -> None:
    assert StackSettings(services="api, trainer").services == ("api", "trainer")  # type: ignore[arg-type]
    assert StackSettings(services="").services == ()  # type: ignore[arg-type]


def test_an_address_that_others_reach_is_refused() -> None:
    with pytest.raises(ValidationError):
        StackSettings(host="0.0.0.0")  # type: ignore[arg-type]


def test_a_path_that_is_no_program_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match="LUTHIER_MONGOD"):
        find_mongod(tmp_path / "nothing")


def test_a_secret_stays_the_same(tmp_path: Path) -> None:
    first = secret_in(tmp_path / "key", num_bytes=16)
    assert len(first) == 32
    assert secret_in(tmp_path / "key", num_bytes=16) == first


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"level": "info", "service": "api", "message": "ready", "port": 8000}', "info    ready port=8000"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_line_is_shown_readably(line: str, shown: str) -> None:
    assert readable(line) == shown


def test_a_command_keeps_its_exit_status() -> None:
    command = (sys.executable, "-c", "raise SystemExit(7)")
    assert subprocess.run(tied_to_this_process(command)).returncode == 7


def test_a_command_whose_starter_is_gone_does_not_run(tmp_path: Path) -> None:
    command = list(tied_to_this_process((sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')")))
    command[4] = "1999999999"
    assert subprocess.run(command).returncode == 70
    assert not (tmp_path / "ran").exists()


async def test_a_child_is_read_to_its_end_when_its_log_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(b"first\nlast\n")
    stream.feed_eof()
    await copy_lines("api", stream, tmp_path)
    assert [line.rpartition("| ")[2] for line in capsys.readouterr().out.splitlines()] == ["first", "last"]
