"""Responses as unmodified clients make, follow, continue and delete them; small HTTP servers stand for engines."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import openai
import pytest
from meetkai_mka1 import SDK
from openai import AsyncOpenAI, OpenAI

from builders.engines import Engine, joined
from integration.api.conftest import TINY, Api

KEYS = {
    *("id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "background"),
    *("instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "output", "output_text"),
    *("parallel_tool_calls", "previous_response_id", "store", "text", "tool_choice", "tools", "truncation"),
    *("usage", "user"),
}
SAID = ("Hello", ", ", "wörld\n")
TEXT = "".join(SAID)


@pytest.fixture
async def engine(api: Api) -> AsyncIterator[Engine]:
    engine = Engine("engine-responses", pieces=SAID)
    async with joined(api.db, engine, TINY):
        yield engine


@pytest.fixture
async def sdk(api: Api) -> AsyncIterator[AsyncOpenAI]:
    """The client as strict as it can be: an answer that its types do not allow raises."""
    url = f"{api.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=api.key, max_retries=0, _strict_response_validation=True) as client:
        yield client


async def test_a_response_is_made_kept_and_deleted(api: Api, engine: Engine, sdk: AsyncOpenAI) -> None:
    made = await sdk.responses.create(
        model=TINY, input="Hi!", instructions="Be short.", max_output_tokens=9, temperature=0, metadata={"a.b": "$c"}
    )
    assert (made.status, made.output_text, made.metadata) == ("completed", TEXT, {"a.b": "$c"})
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (1, 1, 2)
    details = made.usage.input_tokens_details
    assert (details.cached_tokens, details.cache_write_tokens) == (0, 0)
    assert made.usage.output_tokens_details.reasoning_tokens == 0
    asked = engine.asked[-1]
    assert asked["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi!"}]
    assert (asked["max_completion_tokens"], asked["temperature"], asked["project"]) == (9, 0, "proj-default")
    assert await sdk.responses.retrieve(made.id) == made
    async with api.http() as http:
        assert set((await http.get(f"/v1/responses/{made.id}")).json()) >= KEYS
    kept = await api.db["responses"].find_one({"_id": made.id})
    assert kept is not None
    assert kept["expires_at"] - kept["created_at"] == timedelta(days=30)
    indexes = await api.db["responses"].index_information()
    assert indexes["ttl"]["expireAfterSeconds"] == 0
    await sdk.responses.delete(made.id)
    for gone in (sdk.responses.retrieve(made.id), sdk.responses.delete(made.id)):
        with pytest.raises(openai.NotFoundError):
            await gone


async def test_a_conversation_goes_on_without_the_instructions_of_before(
    api: Api, engine: Engine, sdk: AsyncOpenAI
) -> None:
    first = await sdk.responses.create(model=TINY, input="One", instructions="Rhyme.")
    second = await sdk.responses.create(model=TINY, input="Two", previous_response_id=first.id)
    third = await sdk.responses.create(model=TINY, input="Three", previous_response_id=second.id, instructions="Shout.")
    assert third.previous_response_id == second.id
    said = [(message["role"], message["content"]) for message in engine.asked[-1]["messages"]]
    answer = ("assistant", TEXT)
    assert said == [("system", "Shout."), ("user", "One"), answer, ("user", "Two"), answer, ("user", "Three")]
    listed: list[Any] = [item async for item in sdk.responses.input_items.list(third.id)]
    assert [item.content[0].text for item in listed] == ["Three"]
    await api.db["responses"].update_one(
        {"_id": second.id},
        {"$set": {"output.0.content.0.text": "x" * 4_000_000, "input.0.content.0.text": "y" * 3_900_000}},
    )
    fourth = await sdk.responses.create(model=TINY, input="z" * 1_000_000, previous_response_id=second.id)
    with pytest.raises(openai.APIStatusError) as too_long:
        await sdk.responses.create(model=TINY, input="Five", previous_response_id=fourth.id)
    assert too_long.value.status_code == 413
    await sdk.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model=TINY, input="Six", previous_response_id=third.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_items_of_every_role_are_messages_and_can_be_listed(api: Api, engine: Engine, sdk: AsyncOpenAI) -> None:
    before = await sdk.responses.create(model=TINY, input="Hi!", store=False)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(before.id)
    given: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        *[item.model_dump() for item in before.output],
        {"type": "message", "role": "user", "content": "c"},
    ]
    made = await sdk.responses.create(model=TINY, input=given)
    said = [(message["role"], message["content"]) for message in engine.asked[-1]["messages"]]
    assert said == [("developer", "Be kind."), ("user", "ab"), ("assistant", TEXT), ("user", "c")]
    newest = await sdk.responses.input_items.list(made.id, limit=1)
    assert newest.has_more
    async with api.http() as http:
        spelled_out = await http.get(f"/v1/responses/{made.id}/input_items", params={"order": "ascending"})
    assert spelled_out.status_code == 200
    oldest = [item.role async for item in sdk.responses.input_items.list(made.id, limit=2, order="asc")]  # type: ignore[union-attr]
    assert oldest == ["developer", "user", "assistant", "user"]
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.input_items.list(made.id, after="msg_nobody")
    assert caught.value.code == "invalid_cursor"


async def test_a_stream_tells_the_whole_story_in_order(engine: Engine, sdk: AsyncOpenAI) -> None:
    stream = await sdk.responses.create(model=TINY, input="Hi!", stream=True)
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    events = [event async for event in stream]
    deltas = ["response.output_text.delta"] * len(SAID)
    assert [event.type for event in events] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *(*deltas, "response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == list(SAID)
    last = events[-1]
    assert last.type == "response.completed"
    assert await sdk.responses.retrieve(last.response.id) == last.response


async def test_the_sync_client_and_its_streaming_helper(api: Api, engine: Engine) -> None:
    def follow() -> tuple[str, str, str]:
        url = f"{api.url}/v1"
        with OpenAI(base_url=url, api_key=api.key, max_retries=0, _strict_response_validation=True) as client:
            whole = client.responses.create(model=TINY, input="Hi!").output_text
            with client.responses.stream(model=TINY, input="Hi!") as stream:
                heard = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
                final = stream.get_final_response()
            assert client.responses.retrieve(final.id).status == "completed"
            return whole, heard, final.output_text

    assert await asyncio.to_thread(follow) == (TEXT, TEXT, TEXT)


async def test_the_mka1_client_makes_streams_reads_and_deletes(api: Api, engine: Engine) -> None:
    async with SDK(bearer_auth=api.key, server_url=api.url) as mka1:
        made = await mka1.llm.responses.create_async(model=TINY, input="Hi!", metadata={"team": "a"})
        assert (made.output_text, made.status, made.usage.total_tokens) == (TEXT, "completed", 2)
        assert (made.truncation, made.max_tool_calls) == ("auto", 64)
        stream = await mka1.llm.responses.create_async(model=TINY, input="Hi!", stream=True)
        events = [event.data async for event in stream]
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == TEXT
        assert not [event for event in events if getattr(event, "is_unknown", False)]
        found = await mka1.llm.responses.get_async(response_id=made.id)
        assert found.output_text == TEXT
        items = await mka1.llm.responses.list_input_items_async(response_id=made.id)
        assert items.data[0].role == "user"
        assert (await mka1.llm.responses.delete_async(response_id=made.id)).deleted

    def sync() -> str:
        with SDK(bearer_auth=api.key, server_url=api.url) as mka1:
            made = mka1.llm.responses.create(model=TINY, input=[{"type": "message", "role": "user", "content": "x"}])
            return str(made.output_text)

    assert await asyncio.to_thread(sync) == TEXT


async def test_a_token_limit_leaves_the_response_incomplete(engine: Engine, sdk: AsyncOpenAI) -> None:
    engine.reason = "length"
    made = await sdk.responses.create(model=TINY, input="Hi!", max_output_tokens=1)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    stream = await sdk.responses.create(model=TINY, input="Hi!", stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"


async def test_an_engine_that_breaks_off_fails_the_stream(engine: Engine, sdk: AsyncOpenAI) -> None:
    engine.breaks_off = True
    stream = await sdk.responses.create(model=TINY, input="Hi!", stream=True)
    events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.output_text) == ("server_error", SAID[0])
    assert (await sdk.responses.retrieve(last.response.id)).status == "failed"
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.responses.create(model=TINY, input="Hi!")
    assert caught.value.code == "engine_unavailable"


async def test_a_client_that_leaves_a_stream_ends_the_engines_work(engine: Engine, sdk: AsyncOpenAI) -> None:
    engine.hangs = True
    async with asyncio.timeout(20):
        stream = await sdk.responses.create(model=TINY, input="Hi!", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await engine.left.wait()


async def test_responses_of_others_are_not_there(api: Api, engine: Engine, sdk: AsyncOpenAI) -> None:
    made = await sdk.responses.create(model=TINY, input="Hi!")
    foreign = api.sdk(await api.new_key("admin", project="proj-foreign"))
    texts = set()
    for who, response_id in ((foreign, made.id), (foreign, made.id[:-1] + "!")):
        for ask in (who.responses.retrieve, who.responses.delete, who.responses.cancel, who.responses.input_items.list):
            with pytest.raises(openai.NotFoundError) as caught:
                await ask(response_id)
            texts.add(caught.value.body["message"].replace(response_id, ""))  # type: ignore[index]
    assert len(texts) == 1
    with pytest.raises(openai.BadRequestError) as refused:
        await foreign.responses.create(model=TINY, input="and?", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"
    ann, bob = (sdk.with_options(default_headers={"X-On-Behalf-Of": name}) for name in ("ann", "bob"))
    of_ann = await ann.responses.create(model=TINY, input="mine", previous_response_id=made.id)
    assert (await ann.responses.retrieve(of_ann.id)).id == of_ann.id
    with pytest.raises(openai.NotFoundError):
        await bob.responses.retrieve(of_ann.id)


async def test_a_response_that_was_made_cannot_be_cancelled(engine: Engine, sdk: AsyncOpenAI) -> None:
    made = await sdk.responses.create(model=TINY, input="Hi!")
    with pytest.raises(openai.ConflictError) as caught:
        await sdk.responses.cancel(made.id)
    assert caught.value.code == "invalid_state"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_an_expired_response_is_gone_before_the_server_removes_it(
    api: Api, engine: Engine, sdk: AsyncOpenAI
) -> None:
    made = await sdk.responses.create(model=TINY, input="Hi!")
    await api.db["responses"].update_one({"_id": made.id}, [{"$set": {"expires_at": "$$NOW"}}])
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(made.id)


IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"text": {"format": {"type": "json_object"}}}, "text", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": IMAGE}, "input[0].content[0].type", "unsupported_parameter"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": "x", "extra": 1}]}, "input[0].extra", "unknown_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_value"),
        ({"input": [{"role": "user", "content": "x"}] * 20_001}, "input", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    api: Api, body: dict[str, Any], param: str, code: str
) -> None:
    async with api.http() as http:
        answer = await http.post("/v1/responses", json={"model": TINY, "input": "Hi!"} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


async def test_what_asks_for_nothing_is_taken(api: Api, engine: Engine) -> None:
    idle = {
        "background": False,
        "include": [],
        "tools": [],
        "reasoning": None,
        "top_logprobs": 0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "service_tier": "auto",
        "stop": ["x"],
        "user": "u",
    }
    async with api.http() as http:
        answer = await http.post("/v1/responses", json={"model": TINY, "input": "Hi!"} | idle)
    assert (answer.status_code, answer.json()["user"]) == (200, "u")
    assert engine.asked[-1]["stop"] == ["x"]
