"""What a person sees of the runner: data that stays, parts that come back, nothing left behind."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pymongo import AsyncMongoClient

from luthier_stack.errors import HomeInUseError, PartFailedError, StackError, UnknownPartError
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

Client = AsyncMongoClient[dict[str, object]]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LUTHIER_")]:
        monkeypatch.delenv(name)


async def test_acknowledged_data_is_there_after_the_database_was_killed(tmp_path: Path) -> None:
    async with Stack(StackSettings(home=tmp_path, services=(), servers=("mongod",))) as stack:
        url, pid = stack.env["LUTHIER_MONGO_URL"], stack.processes["mongod"]
        await _note(url, "before")
        stack.kill("mongod", signal.SIGKILL)
        await stack.wait_ready("mongod")
        assert stack.restart_count("mongod") == 1
        assert stack.processes["mongod"] not in (pid, None)
        assert await _notes(url) == {"before"}


async def test_a_second_start_finds_the_data_even_when_the_port_was_taken_meanwhile(tmp_path: Path) -> None:
    settings = StackSettings(home=tmp_path, services=(), servers=("mongod",))
    async with Stack(settings) as stack:
        first = stack.env["LUTHIER_MONGO_URL"]
        await _note(first, "one")
    async with Stack(settings) as stack:
        assert stack.env["LUTHIER_MONGO_URL"] == first
    old_port = int((tmp_path / "mongo" / "port").read_text())
    neighbour = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", old_port)
    async with neighbour, Stack(settings) as stack:
        assert stack.env["LUTHIER_MONGO_URL"] != first
        await stack.wait_ready("mongod")
        assert await _notes(stack.env["LUTHIER_MONGO_URL"]) == {"one"}


async def test_the_database_refuses_who_has_no_password(tmp_path: Path, mongo_url: str) -> None:
    without = "mongodb://" + mongo_url.split("@")[1]
    async with Client(without, timeoutMS=5000) as client:
        with pytest.raises(Exception, match="requires authentication"):
            await client.get_default_database().things.find_one()


async def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    async with Stack(StackSettings(home=tmp_path, services=(), servers=("mongod",))):
        secrets = [tmp_path / "mongo" / "password", tmp_path / "mongo" / "key", tmp_path / "internal-token"]
        assert [oct(path.stat().st_mode & 0o777) for path in secrets] == ["0o600"] * 3


async def test_two_runners_do_not_share_a_home(tmp_path: Path) -> None:
    settings = StackSettings(home=tmp_path, services=(), servers=("tansu",))
    async with Stack(settings):
        with pytest.raises(HomeInUseError, match=str(os.getpid())):
            await Stack(settings).start()
    async with Stack(settings):
        pass


async def test_an_external_address_replaces_the_embedded_server(tmp_path: Path, mongo_url: str, kafka_url: str) -> None:
    settings = StackSettings(
        home=tmp_path, services=(), mongo_url=mongo_url, kafka_url=kafka_url, objects_url="s3://bucket"
    )
    async with Stack(settings) as stack:
        assert stack.processes == {}
        given = [stack.env[f"LUTHIER_{name}_URL"] for name in ("MONGO", "KAFKA", "OBJECTS")]
        assert given == [mongo_url, kafka_url, "s3://bucket"]


async def test_a_broker_that_was_stopped_starts_again_on_the_same_port(tmp_path: Path) -> None:
    async with Stack(StackSettings(home=tmp_path, services=(), servers=("tansu",))) as stack:
        before = stack.env["LUTHIER_KAFKA_URL"]
        await stack.stop_service("tansu")
        assert stack.processes["tansu"] is None
        await stack.start_service("tansu")
        assert stack.env["LUTHIER_KAFKA_URL"] == before
        assert stack.processes["tansu"] is not None


async def test_the_broker_ignores_variables_that_would_expose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    elsewhere = free_port()
    monkeypatch.setenv("LISTENER_URL", f"tcp://0.0.0.0:{elsewhere}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    async with Stack(StackSettings(home=tmp_path, services=(), servers=("tansu",))) as stack:
        assert stack.env["LUTHIER_KAFKA_URL"] != f"127.0.0.1:{elsewhere}"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", elsewhere)


async def test_a_server_that_cannot_start_fails_with_its_last_words(tmp_path: Path) -> None:
    fake = tmp_path / "tansu"
    fake.write_text("#!/bin/sh\necho no memory for a broker\nexit 3\n")
    fake.chmod(0o700)
    stack = Stack(StackSettings(home=tmp_path / "home", services=(), servers=("tansu",), tansu=fake))
    with pytest.raises(PartFailedError, match="no memory for a broker"):
        await stack.start()
    assert stack.processes == {"tansu": None}


@pytest.mark.parametrize("settings", [{"services": ("baker",)}, {"services": (), "servers": ("baker",)}])
async def test_an_unknown_part_is_an_error(tmp_path: Path, settings: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(UnknownPartError, match="baker"):
        await Stack(StackSettings(home=tmp_path, **settings)).start()  # type: ignore[arg-type]


async def test_a_taken_port_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        stack = Stack(StackSettings(home=tmp_path, port=taken, services=("api",), servers=()))
        stack.choose_port()
        assert stack.api_url != f"http://127.0.0.1:{taken}"


def test_without_a_key_file_the_error_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="the api writes it"):
        _ = Stack(StackSettings(home=tmp_path)).admin_key


async def test_no_orphan_when_the_runner_is_killed(tmp_path: Path) -> None:
    runner, pids = await _run_command(tmp_path)
    runner.kill()
    await runner.communicate()
    await _until(lambda: not any(_runs(pid) for pid in pids), "every child is gone")
    async with Stack(StackSettings(home=tmp_path, services=())) as stack:
        await stack.wait_ready("mongod")


async def test_an_interrupted_runner_stops_everything_in_order_and_well(tmp_path: Path) -> None:
    runner, pids = await _run_command(tmp_path)
    runner.send_signal(signal.SIGINT)
    said, _ = await asyncio.wait_for(runner.communicate(), 30)
    assert runner.returncode == 0
    assert said.decode().rstrip().endswith("stopped")
    assert not any(_runs(pid) for pid in pids)
    assert (tmp_path / "mongo" / "data" / "mongod.lock").stat().st_size == 0, "mongod closed its files itself"


async def _run_command(home: Path) -> tuple[asyncio.subprocess.Process, list[int]]:
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "luthier_stack", "up", "--home", str(home), "--services", ""),
        stdout=asyncio.subprocess.PIPE,
    )
    assert runner.stdout is not None
    async with asyncio.timeout(60):
        while b"ready" not in await runner.stdout.readline():
            assert runner.returncode is None
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()
    assert len(children) == 2
    return runner, [int(pid) for pid in children]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, f"not so after 10 s: {what}"
        await asyncio.sleep(0.02)


async def _note(url: str, text: str) -> None:
    async with Client(url, timeoutMS=10_000) as client:
        await client.get_default_database().notes.insert_one({"_id": text})


async def _notes(url: str) -> set[object]:
    async with Client(url, timeoutMS=10_000) as client:
        return {note["_id"] async for note in client.get_default_database().notes.find()}
