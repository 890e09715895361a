"""A real api process in this test's own database, broker and folder, and clients that talk to it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from openai import AsyncOpenAI

from luthier_api.first_key import read_pepper
from luthier_api.keys import KeyRing
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, open_mongo
from luthier_stack.part import tied_to_this_process

TINY = "tiny-base"
START_S = 40
PATIENCE_S = 60
"""A busy machine may take so long to answer."""
MAX_QUEUED = 100
"""More than all tests together leave waiting in the project that they share."""


@dataclass(frozen=True)
class Api:
    """A running api: where it is, whose first key it wrote, and the database behind it."""

    url: str
    key: str
    db: Database
    home: Path
    opened: list[AsyncOpenAI] = field(default_factory=list)

    def sdk(self, key: str | None = None, *, max_retries: int = 0) -> AsyncOpenAI:
        client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=max_retries)
        self.opened.append(client)
        return client

    def http(self, key: str | None = None) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE_S)

    async def new_key(self, *scopes: str, project: str = "proj-default", org: str = "org-default") -> str:
        ring = KeyRing(self.db, read_pepper(self.home), cache_s=0)
        return await ring.create("test", frozenset(scopes), project=project, org=org)


@pytest.fixture(scope="session")
async def api(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Api]:
    async with run_api(mongo_url, kafka_url, tmp_path_factory.mktemp("api"), free_port(), "test_api_room", {}) as api:
        yield api


@asynccontextmanager
async def run_api(
    mongo_url: str,
    kafka_url: str,
    home: Path,
    port: int,
    database: str,
    more_env: dict[str, str],
    *,
    drops: bool = True,
) -> AsyncIterator[Api]:
    """An api process with a database and a home of its own, as long as the block lasts."""
    env = {
        "PATH": os.environ["PATH"],
        "LUTHIER_HOME": str(home),
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": database,
        "LUTHIER_KAFKA_URL": kafka_url,
        "LUTHIER_OBJECTS_URL": f"file://{home}/objects",
        "LUTHIER_PORT": str(port),
        "LUTHIER_MAX_FILE_BYTES": "3000000",
        "LUTHIER_MAX_PART_BYTES": "1000000",
        "LUTHIER_MAX_UPLOAD_BYTES": "20000000",
        "LUTHIER_UPLOAD_TIMEOUT_S": "5",
        "LUTHIER_MAX_QUEUED_JOBS": str(MAX_QUEUED),
        "LUTHIER_KEY_CACHE_S": "0.2",
        "LUTHIER_REQUESTS_PER_MINUTE": "1000000",
        "LUTHIER_FAILED_KEYS_PER_MINUTE": "1000000",
        "LUTHIER_SWEEP_S": "1",
        "LUTHIER_MAX_STREAMS": "3",
        "LUTHIER_HEARTBEAT_S": "1",
        **more_env,
    }
    async with open_mongo(mongo_url, database) as db:
        await migrate(db)
        base = {
            "_id": TINY,
            "digest": "0" * 64,
            "key": "bases/0/",
            "files": [],
            "aliases": ["some/Tiny-Base"],
            "context_length": 512,
            "created_at": datetime.now(UTC),
        }
        await db["bases"].replace_one({"_id": TINY}, base, upsert=True)
        with (home / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *tied_to_this_process((sys.executable, "-m", "luthier_api")), env=env, stdout=log, stderr=log
            )
        try:
            await _answers(f"http://127.0.0.1:{port}/healthz", process, home / "log")
            running = Api(f"http://127.0.0.1:{port}", (home / "admin-key").read_text().strip(), db, home)
            yield running
            for client in running.opened:
                await client.close()
        finally:
            if process.returncode is None:
                process.terminate()
                assert await asyncio.wait_for(process.wait(), 20) == 0, (home / "log").read_text()[-4000:]
            if drops:
                await db.client.drop_database(database)


async def _answers(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with httpx2.AsyncClient() as client, asyncio.timeout(START_S):
        while process.returncode is None:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx2.HTTPError:
                await asyncio.sleep(0.1)
    pytest.fail(f"the api did not start:\n{log.read_text()[-4000:]}")
