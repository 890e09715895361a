"""So many requests a minute for a key, in every process together, and so few failed keys for an address."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import openai
import pytest

from builders.waiting import until
from integration.api.conftest import Api, run_api

LIMIT = 40
DATABASE = "test_api_limits"
ENV = {"LUTHIER_REQUESTS_PER_MINUTE": str(LIMIT), "LUTHIER_FAILED_KEYS_PER_MINUTE": "5"}
URL = "/v1/models"


@pytest.fixture(scope="module")
async def limited(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[tuple[Api, Api]]:
    """Two processes over one database."""
    home: Path = tmp_path_factory.mktemp("limits")
    async with (
        run_api(mongo_url, kafka_url, home, free_port(), DATABASE, ENV) as first,
        run_api(mongo_url, kafka_url, home, free_port(), DATABASE, ENV, drops=False) as second,
    ):
        yield first, second


@pytest.fixture
async def early_in_a_minute() -> None:
    """So that no test runs over into the next window."""
    left_s = 60 - time.time() % 60
    if left_s < 20:
        await asyncio.sleep(left_s + 0.05)


@pytest.mark.usefixtures("early_in_a_minute")
async def test_a_key_has_its_requests_and_is_told_when_to_come_again(limited: tuple[Api, Api]) -> None:
    api, _ = limited
    async with api.http(await api.new_key("admin")) as http:
        answers = [await http.get(URL) for _ in range(LIMIT)]
        refused = await http.get(URL)
        missing = await http.get("/v1/files/file-000000000000000000000000")
    assert {answer.status_code for answer in answers} == {200}
    assert [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers] == [*range(LIMIT - 1, -1, -1)]
    assert answers[0].headers["x-ratelimit-limit-requests"] == str(LIMIT)
    assert answers[0].headers["x-ratelimit-reset-requests"].endswith("s")
    for late in (refused, missing):
        assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert late.headers["x-ratelimit-remaining-requests"] == "0"
        assert 0 < int(late.headers["retry-after"]) <= 60
        assert 0 < int(late.headers["retry-after-ms"]) <= 60_000


@pytest.mark.usefixtures("early_in_a_minute")
async def test_a_key_may_have_a_limit_of_its_own_and_errors_count_too(limited: tuple[Api, Api]) -> None:
    api, _ = limited
    place = "/v1/organization/projects/proj-default/api_keys"
    wanted = {"name": "slow", "scopes": ["files:read"], "rate_limit": 3}
    async with api.http(await api.new_key("admin")) as admin:
        refused = await admin.post(place, json=wanted | {"rate_limit": 0})
        made = (await admin.post(place, json=wanted)).json()
        rotated = (await admin.post(f"{place}/{made['id']}/rotate", json={})).json()
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "rate_limit")
    assert made["rate_limit"] == rotated["rate_limit"] == 3
    key = rotated["value"]
    async with api.http(key) as http:
        answers = [await http.get(URL) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [403, 403, 403, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    with pytest.raises(openai.RateLimitError) as caught:
        await api.sdk(key).models.list()
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.usefixtures("early_in_a_minute")
async def test_processes_count_together_with_few_writes(limited: tuple[Api, Api]) -> None:
    first, second = limited
    key = await first.new_key("admin")
    async with first.http(key) as one, second.http(key) as other:
        await asyncio.gather(*(one.get(URL) for _ in range(LIMIT - 10)))
        name = {"_id": {"$regex": f"^{key.split('-')[2]}/"}}

        async def is_told() -> bool:
            row = await first.db["rate_windows"].find_one(name)
            return row is not None and row["count"] == LIMIT - 10

        await until(is_told)

        async def hears() -> int | None:
            left = int((await other.get(URL)).headers["x-ratelimit-remaining-requests"])
            return left + 1 if left < 10 else None

        assert await until(hears, every_s=0.6) <= 10


@pytest.mark.usefixtures("early_in_a_minute")
async def test_keys_cannot_be_guessed_at_speed_and_good_ones_go_on(limited: tuple[Api, Api]) -> None:
    api, _ = limited
    async with api.http() as good, httpx2.AsyncClient(base_url=api.url) as guesser:
        assert (await good.get(URL)).status_code == 200
        statuses = []
        for number in range(7):
            headers = {"authorization": f"Bearer sk-lut-000000000000-{number:043d}"}
            answer = await guesser.get(URL, headers=headers)
            statuses.append(answer.status_code)
        assert statuses == [401] * 5 + [429] * 2
        assert answer.json()["error"]["code"] == "too_many_failed_keys"
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert (await good.get(URL)).status_code == 200
        new_here = {"authorization": f"Bearer {await api.new_key('admin')}"}
        assert (await guesser.get(URL, headers=new_here)).status_code == 200
        assert (await guesser.get(URL)).status_code == 429
