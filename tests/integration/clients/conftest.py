"""An api process for unmodified clients, and ways to call their sync and async halves alike."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from builders.engines import Engine, joined
from integration.api.conftest import TINY, Api, run_api

SAID = ("Hel", "lo")
LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'


@pytest.fixture(scope="session")
async def api(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Api]:
    home = tmp_path_factory.mktemp("clients")
    async with run_api(
        mongo_url, kafka_url, home, free_port(), "test_api_clients", {"LUTHIER_MAX_QUEUED_JOBS": "200"}
    ) as running:
        yield running


@pytest.fixture
async def engine(api: Api) -> AsyncIterator[Engine]:
    """It answers for the base whatever one asks, in the pieces of `SAID`."""
    engine = Engine("engine-clients", pieces=SAID)
    async with joined(api.db, engine, TINY):
        yield engine


class Half:
    """The sync or the async half of a client library, called in one way."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async

    async def __call__(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.is_async:
            return await method(*args, **kwargs)
        return await asyncio.to_thread(method, *args, **kwargs)

    async def items(self, page: Any) -> list[Any]:
        """Everything from this page on, as the library's own iteration gives it."""
        if self.is_async:
            return [item async for item in page]
        return await asyncio.to_thread(list, page)
