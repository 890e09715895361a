"""What one key may have made at a time, and what an engine that says nothing costs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from builders.engines import Engine, joined
from builders.waiting import until
from integration.api.conftest import TINY, Api, run_api

MOST = 4
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": TINY, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def bounded(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Api]:
    env = {"LUTHIER_MAX_GENERATIONS": str(MOST), "LUTHIER_ENGINE_READ_TIMEOUT_S": "8"}
    home = tmp_path_factory.mktemp("bounded")
    async with run_api(mongo_url, kafka_url, home, free_port(), "test_api_bounded", env) as api:
        yield api


async def test_a_key_has_so_many_answers_made_at_a_time_and_others_theirs(bounded: Api) -> None:
    engine = Engine("engine-busy", pieces=("a", "b"), pace_s=0.8)
    async with (
        joined(bounded.db, engine, TINY),
        bounded.http() as http,
        bounded.http(await bounded.new_key("admin")) as other,
    ):
        streams = [asyncio.create_task(http.post(CHAT, json=BODY | {"stream": True})) for _ in range(MOST - 1)]
        whole = asyncio.create_task(http.post("/v1/responses", json={"model": TINY, "input": "hi"}))

        async def all_asked() -> bool:
            return len(engine.asked) == MOST

        await until(all_asked)
        for path, body in ((CHAT, BODY), (f"{CHAT}/stream", BODY), ("/v1/responses", {"model": TINY, "input": "hi"})):
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_generations")
            assert refused.headers["retry-after"] == "5"
        assert (await other.post(CHAT, json=BODY)).status_code == 200
        assert [answer.status_code for answer in await asyncio.gather(*streams, whole)] == [200] * MOST
        assert (await http.post(CHAT, json=BODY | {"n": MOST})).status_code == 200


async def test_who_hangs_up_may_have_another_answer(bounded: Api) -> None:
    engine = Engine("engine-hung", hangs=True)
    async with joined(bounded.db, engine, TINY), bounded.http() as http:
        for _ in range(2 * MOST):
            async with http.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
                assert answer.status_code == 200
            async with asyncio.timeout(5):
                await engine.left.wait()
            engine.left.clear()


async def test_what_one_engine_is_silent_about_is_not_sent_to_the_next(bounded: Api) -> None:
    engines = [Engine(f"engine-silent-{number}", is_slow=True) for number in range(2)]
    async with joined(bounded.db, engines[0], TINY), joined(bounded.db, engines[1], TINY), bounded.http() as http:
        answers = await asyncio.gather(*(http.post(CHAT, json=BODY | {"stream": each}) for each in (False, True)))
    assert {(each.status_code, each.json()["error"]["code"]) for each in answers} == {(503, "engine_unavailable")}
    assert sorted(len(engine.asked) for engine in engines) == [0, 2]
