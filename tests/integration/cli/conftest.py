"""A real api process for the command to talk to, and the command as people start it."""

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from luthier_cli.commands import main
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, open_mongo
from luthier_stack.part import tied_to_this_process

DATABASE = "test_cli"
START_S = 40
RUN_S = 60


@dataclass(frozen=True)
class Ran:
    """What the command left."""

    status: int
    out: str
    err: str


Luthier = Callable[..., Awaitable[Ran]]


@dataclass(frozen=True)
class Server:
    url: str
    home: Path
    db: Database


@pytest.fixture(scope="session")
async def server(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Server]:
    home, port = tmp_path_factory.mktemp("cli"), free_port()
    env = {
        "PATH": os.environ["PATH"],
        "LUTHIER_HOME": str(home),
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": DATABASE,
        "LUTHIER_KAFKA_URL": kafka_url,
        "LUTHIER_OBJECTS_URL": f"file://{home}/objects",
        "LUTHIER_PORT": str(port),
        "LUTHIER_KEY_CACHE_S": "0.2",
    }
    async with open_mongo(mongo_url, DATABASE) as db:
        await migrate(db)
        base = {"_id": "tiny-base", "digest": "0" * 64, "key": "bases/0/", "files": [], "aliases": []}
        await db["bases"].insert_one({**base, "context_length": 512})
        with (home / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *tied_to_this_process((sys.executable, "-m", "luthier_api")), env=env, stdout=log, stderr=log
            )
        try:
            await _answers(f"http://127.0.0.1:{port}/healthz", process, home / "log")
            yield Server(f"http://127.0.0.1:{port}/v1", home, db)
        finally:
            if process.returncode is None:
                process.terminate()
                assert await asyncio.wait_for(process.wait(), 20) == 0, (home / "log").read_text()[-4000:]
            await db.client.drop_database(DATABASE)


@pytest.fixture
def luthier(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Luthier:
    """`luthier ...` in a directory of its own, with the server's admin key unless another environment is given.

    The entry point runs in a thread of this process: a process for each word would mostly import.
    """

    async def run(*words: str, env: dict[str, str] | None = None) -> Ran:
        with monkeypatch.context() as patched:
            patched.chdir(tmp_path)
            patched.setattr(sys, "argv", ["luthier", *words])
            for name in [name for name in os.environ if name.startswith(("LUTHIER_", "OPENAI_"))]:
                patched.delenv(name)
            for name, value in _environment(server, env).items():
                patched.setenv(name, value)
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = await asyncio.to_thread(_enter)
        return Ran(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def luthier_process(server: Server, tmp_path: Path) -> Luthier:
    """The same as a process of its own, as people start it."""

    async def run(*words: str, env: dict[str, str] | None = None) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "luthier_cli", *words),
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **_environment(server, env)},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), RUN_S)
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    return run


def _enter() -> int:
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def _environment(server: Server, env: dict[str, str] | None) -> dict[str, str]:
    if env is not None:
        return env
    return {"LUTHIER_BASE_URL": server.url, "LUTHIER_API_KEY": (server.home / "admin-key").read_text().strip()}


async def _answers(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with httpx2.AsyncClient() as client, asyncio.timeout(START_S):
        while process.returncode is None:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx2.HTTPError:
                await asyncio.sleep(0.1)
    pytest.fail(f"the api did not start:\n{log.read_text()[-4000:]}")
