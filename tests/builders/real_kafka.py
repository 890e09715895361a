"""A real Apache Kafka whose brokers can be killed, brought back with their logs, or brought back empty."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from luthier_stack.logs import tail
from luthier_stack.part import tied_to_this_process
from luthier_stack.ports import find_free_ports, is_free

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDS_REAL = "needs the real servers"
START_TIMEOUT_S = 120.0
CONTROLLER_OFFSET = 100


def real_script(name: str) -> Path:
    """A start script of the real servers (LUTHIER_REAL names their folder), or a skip that says what is missing."""
    folder = Path(os.environ.get("LUTHIER_REAL") or REPOSITORY.parent / "shared" / "real")
    if not (folder / name).is_file():
        pytest.skip(f"{NEEDS_REAL}: no folder {folder} with {name} (set LUTHIER_REAL)")
    if shutil.which("java") is None:
        pytest.skip(f"{NEEDS_REAL}: no Java on PATH")
    return folder / name


class RealKafka:
    """One or three brokers on ports of their own; use it as a context."""

    def __init__(self, folder: Path, *, num_brokers: int = 1) -> None:
        self._script = real_script("kafka-up")
        self._folder = folder
        self._num_brokers = num_brokers
        self._port = _find_ports(num_brokers)
        self._runs = 0
        self._data = folder / "kafka-0"
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def url(self) -> str:
        return ",".join(f"127.0.0.1:{self._port + number}" for number in range(self._num_brokers))

    async def __aenter__(self) -> "RealKafka":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def start(self, only: int | None = None) -> None:
        """Start all brokers, or `only` one of them, with the logs that they have."""
        self._runs += 1
        log = self._folder / f"kafka-up-{self._runs}.log"
        alone = () if only is None else (str(only),)
        command = (str(self._script), str(self._data), str(self._port), str(self._num_brokers), *alone)
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *tied_to_this_process(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "KAFKA_HEAP": "256m"},
            )
        self._processes.append(process)
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)).decode()
        assert line.startswith("ready "), f"kafka-up did not start:\n{tail(log)}"

    def kill(self, broker: int = 0) -> None:
        """`kill -9`: its log stays."""
        os.kill(int((self._data / f"broker-{broker}" / "pid").read_text()), signal.SIGKILL)

    async def start_empty(self) -> None:
        """After all were killed: the same addresses, and nothing that was ever told."""
        for process in self._processes:
            await process.wait()
        self._data = self._folder / f"kafka-{self._runs}"
        await self.start()


def _find_ports(num_brokers: int) -> int:
    wanted = [number + offset for number in range(num_brokers) for offset in (0, CONTROLLER_OFFSET)]
    return next(port for port in find_free_ports(20) if all(is_free(port + offset) for offset in wanted))
