"""A process that is asked to stop finishes what it is answering, or says that it could not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from builders.engines import Engine, joined
from builders.waiting import until
from integration.api.conftest import TINY, Api, run_api
from luthier_common.kit.mongo import open_mongo

ASKED: Any = [{"role": "user", "content": "hi"}]
Run = Callable[..., Any]


@pytest.fixture
async def engine(mongo_url: str, database_name: str) -> AsyncIterator[Engine]:
    """It stays when the api goes."""
    engine = Engine("engine-stops", pieces=("a", "b", "c", "d"))
    async with open_mongo(mongo_url, database_name) as db, joined(db, engine, TINY):
        yield engine


@pytest.fixture
def run(mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int], database_name: str) -> Run:
    """An api process; the exit of its block asks it to stop, and waits until it has."""
    return lambda env: run_api(mongo_url, kafka_url, tmp_path, free_port(), database_name, env)


def client_of(api: Api) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


async def test_an_answer_that_ends_within_the_grace_is_whole(run: Run, engine: Engine) -> None:
    """A rollout in the middle of an answer of three seconds."""
    engine.pace_s = 0.8
    running = run({})
    api: Api = await running.__aenter__()
    sdk = client_of(api)
    chat = await sdk.chat.completions.create(model=TINY, messages=ASKED, stream=True)
    said = [(await anext(chat)).choices[0].delta.content]
    stopping = asyncio.create_task(running.__aexit__(None, None, None))
    said += [choice.delta.content async for chunk in chat for choice in chunk.choices]
    await stopping
    await sdk.close()
    assert said == ["a", "b", "c", "d"]


async def test_answers_that_take_longer_break_off_and_say_so(run: Run, engine: Engine) -> None:
    engine.hangs = True
    running = run({"LUTHIER_STOP_GRACE_S": "1"})
    api: Api = await running.__aenter__()
    sdk, body = client_of(api), {"model": TINY, "messages": ASKED}
    chat = await sdk.chat.completions.create(model=TINY, messages=ASKED, stream=True)
    assert (await anext(chat)).choices[0].delta.content == "a"
    response = await sdk.responses.create(model=TINY, input="hi", stream=True)
    assert (await anext(response)).type == "response.created"
    async with httpx2.AsyncClient(base_url=api.url, headers={"authorization": f"Bearer {api.key}"}) as http:
        whole = asyncio.create_task(http.post("/v1/chat/completions", json=body, timeout=30))
        named = asyncio.create_task(http.post("/v1/chat/completions/stream", json=body, timeout=30))
        await until(lambda: _said(len(engine.asked) == 4), what="all four are being answered")
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        with pytest.raises(openai.APIError, match="broke off"):
            await anext(chat)
        assert [event.type async for event in response][-1] == "response.failed"
        refused = await whole
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert "event: error" in (await named).text
        await stopping
    await sdk.close()


async def _said(is_so: bool) -> bool:
    return is_so
