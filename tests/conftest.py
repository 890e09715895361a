"""Servers for tests: embedded ones by default, real ones where they are at hand.

Each starts when first asked for, once a session.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pymongo import AsyncMongoClient
from xdist.scheduler import LoadScopeScheduling

from builders.production import NEEDS_KUBECTL
from builders.real_kafka import NEEDS_REAL, real_script
from builders.real_s3 import RealS3
from builders.scale import FULL
from luthier_stack.logs import tail
from luthier_stack.part import tied_to_this_process
from luthier_stack.ports import find_free_ports, is_free
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

REPOSITORY = Path(__file__).resolve().parent.parent
EXPECTED_SKIPS = ("needs a GPU",) if FULL else (NEEDS_REAL, NEEDS_KUBECTL, "needs a GPU", "needs a released version")
START_TIMEOUT_S = 120.0
KAFKA_CONTROLLER_OFFSET = 100

# How long an example takes tells of the machine, not of the code.
hypothesis_settings.register_profile("luthier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("luthier")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a free loopback port at each call."""
    return lambda: find_free_ports(1)[0]


@pytest.fixture(scope="session")
async def mongo_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The embedded mongod: a replica set of one. Use the `database_name` fixture beside it."""
    settings = StackSettings(home=tmp_path_factory.mktemp("mongo"), services=(), servers=("mongod",), mongo_url=None)
    async with Stack(settings) as stack:
        yield stack.env["LUTHIER_MONGO_URL"]


@pytest.fixture(scope="session")
async def kafka_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The embedded broker, as host:port."""
    settings = StackSettings(home=tmp_path_factory.mktemp("tansu"), services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack:
        yield stack.env["LUTHIER_KAFKA_URL"]


@pytest.fixture
async def database_name(mongo_url: str) -> AsyncIterator[str]:
    """A database of this test's own, dropped after it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    async with AsyncMongoClient[dict[str, object]](mongo_url, timeoutMS=10_000) as client:
        await client.drop_database(name)


@pytest.fixture(scope="session")
async def real_kafka_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A real Apache Kafka with one broker, as host:port. It makes no topics by itself."""
    script = real_script("kafka-up")
    port = next(p for p in find_free_ports(20) if is_free(p + KAFKA_CONTROLLER_OFFSET))
    async with _real_server(script, tmp_path_factory.mktemp("kafka"), port) as address:
        yield address


@pytest.fixture(scope="session")
async def real_s3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealS3]:
    """A real S3 server over a directory; it has no bucket yet."""
    script = real_script("s3-up")
    async with _real_server(script, tmp_path_factory.mktemp("s3"), find_free_ports(1)[0]) as address:
        yield RealS3(address)


@asynccontextmanager
async def _real_server(script: Path, folder: Path, port: int) -> AsyncIterator[str]:
    """Run a start script until the block ends; gives the address that it prints when ready."""
    log = folder / "script.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *tied_to_this_process((str(script), str(folder / "data"), str(port))),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)).decode().strip()
        if not line.startswith("ready "):
            pytest.fail(f"{script.name} did not start:\n{tail(log)}")
        yield line.removeprefix("ready ").replace("localhost", "127.0.0.1")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class FolderScheduling(LoadScopeScheduling):
    """What starts whole stacks shares one worker; every other folder stays together, and with it its servers.

    Not by xdist's own groups: it writes them into an attribute that pytest 9 no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.partition("::")[0].rpartition("/")[0]
        return "stack" if folder in {"tests/e2e", "tests/proof"} else folder


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FolderScheduling:
    return FolderScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With LUTHIER_STRICT_SKIPS a skip that nobody expected fails the run: a test that never runs proves nothing."""
    if not os.environ.get("LUTHIER_STRICT_SKIPS") or exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    unexpected = [report for report in skipped if not any(reason in str(report.longrepr) for reason in EXPECTED_SKIPS)]
    if unexpected:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        for report in unexpected:
            reporter.write_line(f"unexpected skip: {report.nodeid}: {report.longrepr}", red=True)
