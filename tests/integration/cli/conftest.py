"""A real api process for the command to talk to, and the command as people start it."""

import asyncio
import contextlib
import io
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.api.conftest import run_api
from luthier_cli.commands import main
from luthier_common.kit.mongo import Database

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
    home = tmp_path_factory.mktemp("cli")
    async with run_api(mongo_url, kafka_url, home, free_port(), "test_cli", {}) as api:
        yield Server(f"{api.url}/v1", home, api.db)


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
def luthier_started(server: Server, tmp_path: Path) -> Callable[..., Awaitable[Process]]:
    """A process of its own, as people start it, which goes on meanwhile."""

    async def start(*words: str, env: dict[str, str] | None = None) -> Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "luthier_cli", *words),
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **_environment(server, env)},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    return start


@pytest.fixture
def luthier_process(luthier_started: Callable[..., Awaitable[Process]]) -> Luthier:
    """The same, to its end."""

    async def run(*words: str, env: dict[str, str] | None = None) -> Ran:
        process = await luthier_started(*words, env=env)
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
