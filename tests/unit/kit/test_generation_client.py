"""The client of the engines gives up in time, and says when another engine would only meet the same again."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from pydantic import SecretStr

from builders.engines import Engine
from luthier_common.kit.generation import EngineAwayError, EngineOverdueError, GenerationClient

BODY = {"model": "tiny", "base": "tiny", "messages": [{"role": "user", "content": "hi"}]}
NOTHING = SecretStr("")


@pytest.fixture
def engine() -> Engine:
    return Engine("engine-here")


@pytest.fixture
async def address(engine: Engine) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(engine, lifespan="off", log_config=None, ws="none"))
    serving = asyncio.create_task(server._serve([listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serving


async def test_without_a_connection_to_spare_nobody_waits_for_minutes(engine: Engine, address: str) -> None:
    engine.hangs = True
    async with GenerationClient(NOTHING, max_connections=1) as client:
        async with client.stream(address, BODY), asyncio.timeout(20):
            with pytest.raises(EngineOverdueError):
                await client.complete(address, BODY)
        engine.hangs = False
        assert (await client.complete(address, BODY))["choices"][0]["message"]["content"] == engine.name


@pytest.mark.parametrize("silence", ["is_slow", "hangs"])
async def test_an_engine_that_falls_silent_is_overdue_and_one_that_is_away_is_not(
    engine: Engine, address: str, silence: str
) -> None:
    setattr(engine, silence, True)
    async with GenerationClient(NOTHING, read_timeout_s=0.3) as client:
        with pytest.raises(EngineOverdueError):
            await client.complete(address, BODY)
        with pytest.raises(EngineAwayError) as caught:
            await client.complete("http://127.0.0.1:1", BODY)
    assert not isinstance(caught.value, EngineOverdueError)
