"""Other people's servers to stand beside ours: each in a virtual environment of its own, made once below .luthier/."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from _bench import ROOT
from _load import Client

from luthier_stack.part import tied_to_this_process

INSTALL_S = 900
MADE = "made"
Do = Callable[[int], Awaitable[object]]


def peer_env(name: str, requirements: Sequence[str]) -> Path:
    """The folder of executables of an environment with these packages; ends the measure when it cannot be made."""
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = ROOT / ".luthier" / "cache" / "peers" / f"{name}-{digest}"
    if not (folder / MADE).exists():
        print(f"installing {name}, once; it takes some minutes", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run((sys.executable, "-m", "venv", str(folder)), check=True)
        pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements)
        try:
            subprocess.run(pip, check=True, timeout=INSTALL_S, stdout=sys.stderr)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise SystemExit(f"{name} could not be installed, so nothing was measured: {error}") from error
        (folder / MADE).touch()
    return folder / "bin"


@asynccontextmanager
async def peer_server(
    command: Sequence[str], port: int, log: Path, *, env: Mapping[str, str], within_s: float = 120.0
) -> AsyncIterator[None]:
    """A peer's server that listens on this port; ends the measure when it does not within the time."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *tied_to_this_process(tuple(command)), env=dict(env), stdout=output, stderr=output, start_new_session=True
        )
    try:
        try:
            (await Client.connect(port, within_s=within_s)).close()
        except OSError as error:
            told = log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"{command[0]} does not listen, so nothing was measured:\n{told}") from error
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it has started and left


async def in_turn(count: int, ours: Do, theirs: Do, *, warm_up: int = 5) -> tuple[list[float], list[float]]:
    """How long each of so many deeds took, in milliseconds: ours and theirs alternate, so that neighbours slow both."""
    times_ms: tuple[list[float], list[float]] = ([], [])
    for number in range(warm_up + count):
        for do, into in zip((ours, theirs), times_ms, strict=True):
            began_at = time.perf_counter()
            await do(number)
            if number >= warm_up:
                into.append((time.perf_counter() - began_at) * 1000)
    return times_ms
