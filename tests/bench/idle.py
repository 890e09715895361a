"""How soon a warm `make up` is ready, and how much memory the idle stack holds.

The first start fills a home; the second, timed from the command to its line that Luthier is ready, is the warm one (aim
15 s). Its baseline is the same command with the two servers alone. Memory is the proportional set size (shared pages
divided among those who share them) of every process, before any base model is loaded (aim below 1.2 GiB in all) and
after; baselines are the two servers' part.
"""

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from _bench import Base, base_env, real_base, report, run

from luthier_stack.ports import find_free_ports
from luthier_stack.settings import SERVERS, SERVICES

STARTED_WITHIN_S = 120.0
SETTLE_S = 5.0
NO_BASE = {"LUTHIER_INFERENCE_BASES": "none"}
MIB = 1024.0
RUNNER = "runner"


async def measure() -> None:
    with tempfile.TemporaryDirectory(prefix="luthier-bench-", ignore_cleanup_errors=True) as folder:
        home, base = Path(folder) / "home", real_base(Path(folder))
        async with _up(home, base) as (_, first_s):
            report("idle.first_start_to_ready", first_s, "s")
        async with _up(home, base, services="") as (_, servers_s):
            pass
        async with _up(home, base) as (pid, warm_s):
            report("idle.warm_start_to_ready", warm_s, "s", servers_s)
            await asyncio.sleep(SETTLE_S)
            _report_memory("idle.with_base", await _memory(pid))
        async with _up(home, base, env=NO_BASE, wait_for=_STARTING) as (pid, _):
            await _all_started(pid)
            await asyncio.sleep(SETTLE_S)
            _report_memory("idle.before_base", await _memory(pid))


_READY = re.compile(rb"Luthier is ready|ready: ")
_STARTING = re.compile(rb"starting in")


@asynccontextmanager
async def _up(
    home: Path,
    base: Base,
    *,
    services: str | None = None,
    env: Mapping[str, str] | None = None,
    wait_for: re.Pattern[bytes] = _READY,
) -> AsyncIterator[tuple[int, float]]:
    """The runner as `make up` starts it: its process id, and the seconds until it said what was waited for."""
    command = [sys.executable, "-m", "luthier_stack", "up", "--home", str(home), "--port", str(find_free_ports(1)[0])]
    if services is not None:
        command += ["--services", services]
    began_at = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, env={**_bare_environ(), **base_env(base), **(env or {})}, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(STARTED_WITHIN_S):
            while line := await process.stdout.readline():
                if wait_for.search(line):
                    break
            else:
                raise SystemExit("the stack did not start")
        took_s = time.perf_counter() - began_at
        rest = asyncio.create_task(process.stdout.read())
        yield process.pid, took_s
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    await rest


def _bare_environ() -> dict[str, str]:
    """Without addresses of other servers: the embedded ones are measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}


async def _all_started(pid: int) -> None:
    """Every service runs and has read its code: memory no longer grows."""
    deadline, before = time.monotonic() + STARTED_WITHIN_S / 2, 0.0
    while time.monotonic() < deadline:
        await asyncio.sleep(2)
        memory = await _memory(pid)
        total = sum(memory.values())
        if len(memory) == len(SERVICES) + len(SERVERS) + 1 and abs(total - before) < 0.01 * total:
            return
        before = total
    raise SystemExit("the services do not come to rest")


def _report_memory(name: str, memory: dict[str, float]) -> None:
    for part, mib in memory.items():
        report(f"{name}.pss.{part}", mib, "MiB")
    servers = sum(mib for part, mib in memory.items() if part in SERVERS)
    report(f"{name}.pss.all", sum(memory.values()), "MiB", servers)


async def _memory(runner: int) -> dict[str, float]:
    """Proportional set size of the runner and of all that it has started, by part, in MiB."""
    return await asyncio.to_thread(_read_memory, runner)


def _read_memory(runner: int) -> dict[str, float]:
    found = {RUNNER: _pss_mib(runner)}
    for pid in _descendants(runner):
        part = _part_of(pid)
        found[part] = found.get(part, 0.0) + _pss_mib(pid)
    return found


def _descendants(pid: int) -> list[int]:
    children = [int(child) for child in _read(pid, f"task/{pid}/children").split()]
    return [each for child in children for each in (child, *_descendants(child))]


def _part_of(pid: int) -> str:
    command = _read(pid, "cmdline").replace("\0", " ")
    if match := re.search(r"-m luthier_(\w+)", command):
        return match[1].replace("_", "-")
    return next((server for server in SERVERS if server in command.partition(" ")[0]), "other")


def _pss_mib(pid: int) -> float:
    match = re.search(r"^Pss:\s+(\d+) kB", _read(pid, "smaps_rollup"), re.MULTILINE)
    return int(match[1]) / MIB if match else 0.0


def _read(pid: int, name: str) -> str:
    """A file of a process; empty once the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    run(measure)
