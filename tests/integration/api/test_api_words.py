"""What a model said is kept where the client asked for it, and nowhere else."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from builders.engines import Engine, joined
from integration.api.conftest import TINY, Api
from luthier_api.store.responses import MAX_BYTES

SAID = "words of a model"
CHAT = {"model": TINY, "messages": [{"role": "user", "content": "hi"}]}
RESPONSE = {"model": TINY, "input": "hi"}
REPLAYED = "idempotent-replayed"


@pytest.fixture
async def engine(api: Api) -> AsyncIterator[Engine]:
    engine = Engine("engine-words", pieces=(SAID,))
    async with joined(api.db, engine, TINY):
        yield engine


async def kept(api: Api) -> list[Any]:
    rows = await api.db["idempotency"].find({"body": {"$ne": None}}).to_list(None)
    return [row for row in rows if SAID.encode() in row["body"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/responses", RESPONSE | {"store": False})],
    ids=["chat", "response"],
)
async def test_an_answer_that_is_not_stored_is_made_once_and_shown_once(
    api: Api, engine: Engine, path: str, body: dict[str, Any]
) -> None:
    headers = {"idempotency-key": f"words-{path}"}
    async with api.http() as http:
        first, again = [await http.post(path, json=body, headers=headers) for _ in range(2)]
    assert (first.status_code, SAID in first.text) == (200, True)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_answer_not_kept")
    assert again.headers["x-should-retry"] == "false"
    assert len(engine.asked) == 1
    assert not await kept(api)


async def test_a_stored_response_is_shown_again_until_it_is_deleted(api: Api, engine: Engine) -> None:
    headers = {"idempotency-key": "words-stored"}
    async with api.http() as http:
        first, again = [await http.post("/v1/responses", json=RESPONSE, headers=headers) for _ in range(2)]
        assert (first.status_code, REPLAYED in first.headers) == (200, False)
        assert (again.status_code, again.json(), again.headers[REPLAYED]) == (200, first.json(), "true")
        assert not await kept(api)
        await http.delete(f"/v1/responses/{first.json()['id']}")
        gone = await http.post("/v1/responses", json=RESPONSE, headers=headers)
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "idempotency_answer_not_kept")
    assert len(engine.asked) == 1


async def test_a_refusal_is_still_the_same_again(api: Api, engine: Engine) -> None:
    headers = {"idempotency-key": "words-refused"}
    async with api.http() as http:
        answers = [await http.post("/v1/responses", json={"model": TINY}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert (answers[1].headers[REPLAYED], engine.asked) == ("true", [])


async def test_a_conversation_beyond_all_bounds_is_cut_where_it_may_be(api: Api, engine: Engine) -> None:
    long = "x" * (MAX_BYTES * 2 // 5)
    async with api.http() as http:
        last = None
        for number in range(3):
            body = {"model": TINY, "input": f"{number}{long}", "previous_response_id": last}
            last = (await http.post("/v1/responses", json=body, timeout=60)).json()["id"]
        body = {"model": TINY, "input": "last", "previous_response_id": last}
        refused = await http.post("/v1/responses", json=body, timeout=60)
        answer = await http.post("/v1/responses", json=body | {"truncation": "auto"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.status_code == 200
    assert [message["content"][:1] for message in engine.asked[-1]["messages"]] == ["1", "w", "2", "w", "l"]
    assert answer.json()["x_dropped_messages"] == 2


async def test_what_was_cut_before_is_counted_with_what_is_cut_now(api: Api, engine: Engine) -> None:
    """The beginning is read neither time."""
    long = "x" * (MAX_BYTES * 3 // 5)
    dropped, last = [], None
    async with api.http() as http:
        for _ in range(4):
            body = {"model": TINY, "input": long, "previous_response_id": last, "truncation": "auto"}
            answer = (await http.post("/v1/responses", json=body, timeout=60)).json()
            dropped.append(answer["x_dropped_messages"])
            last = answer["id"]
    assert dropped == [0, 0, 2, 4]
