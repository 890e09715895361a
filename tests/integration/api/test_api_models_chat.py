"""Models, and chat completions passed to engines: two small HTTP servers stand for inference nodes."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import openai
import pytest
from meetkai_mka1 import SDK
from openai import AsyncOpenAI

from builders.engines import Engine, joined
from builders.jobs import OWNED, JobStory, make_blob
from integration.api.conftest import TINY, Api
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.ids import new_id
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit import ledger

ACTOR = Actor(room="test")
HI = {"role": "user", "content": "hi"}
CACHED = {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}


async def _staged_model(api: Api, name: str, **more: Any) -> tuple[JobStory, str]:
    """A job whose model is staged, not yet registered."""
    story = await JobStory.created(api.db)
    await story.in_training()
    finished = f.RunFinished(step=6, artifact=make_blob(), trained_tokens=300, train_loss=0.5)
    await story.tell(finished, attempt=1, op_id="1/RunFinished")
    model_id = f"ftmodel-{story.id[6:]}"
    fields = {
        **OWNED,
        "name": name,
        "job": story.id,
        "base": TINY,
        "base_digest": "0" * 64,
        "blob": make_blob().model_dump(mode="json"),
    }
    fields |= more
    await create(
        api.db, f.ModelStaged(name=name, job_id=story.id, base=TINY, blob=make_blob()), model_id, fields, actor=ACTOR
    )
    await story.tell(f.ArtifactStaged(model_id=model_id, model_name=name, blob=make_blob()), op_id="staged")
    await story.tell(f.ServingSkipped(reason="test"), op_id="skipped")
    return story, model_id


async def test_bases_and_tuned_models_are_listed_and_a_name_may_hold_anything(api: Api) -> None:
    sdk = api.sdk()
    name = "ft:meta/llama:3.1:default:bot:1234"
    story, model_id = await _staged_model(api, name)
    assert name not in [model.id async for model in sdk.models.list()]
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve(name)
    assert caught.value.code == "model_not_found"
    await story.tell(f.ModelRegistered(model_id=model_id, model_name=name), op_id="registered")
    assert {name, TINY} <= {model.id async for model in sdk.models.list()}
    found = await sdk.models.retrieve(name)
    assert (found.id, found.object, found.owned_by) == (name, "model", "org-default")
    job = await sdk.fine_tuning.jobs.retrieve(story.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", name)
    await advance(api.db, Kind.MODEL, model_id, f.ModelPublished(name=name, job_id=story.id), actor=ACTOR)
    foreign = api.sdk(await api.new_key("admin", project="proj-foreign"))
    for refused in (foreign.models.retrieve(name), foreign.models.delete(name)):
        with pytest.raises(openai.NotFoundError):
            await refused
    async with api.http() as http:
        assert (await http.head(f"/v1/models/{quote(name, safe='')}")).status_code == 200
        assert (await sdk.models.delete(name)).deleted
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve(name)
        gone = await http.head(f"/v1/models/{name}")
        assert (gone.status_code, gone.content) == (404, b"")


async def test_a_name_without_an_id_means_the_newest_model(api: Api) -> None:
    sdk, short = api.sdk(), f"ft:{TINY}:support-bot"
    names = [f"ft:{TINY}:default:support-bot:{number}" for number in (1, 2)]
    made = [(name, *await _staged_model(api, name, aliases=[short, "ft:some/Tiny-Base:support-bot"])) for name in names]
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve(short)
    for name, story, model_id in made:
        await story.tell(f.ModelRegistered(model_id=model_id, model_name=name), op_id="registered")
        await advance(api.db, Kind.MODEL, model_id, f.ModelPublished(name=name, job_id=story.id), actor=ACTOR)
        assert (await sdk.models.retrieve(short)).id == name
    engine = Engine("engine-alias")
    async with joined(api.db, engine, TINY):
        await sdk.chat.completions.create(
            model="ft:some/Tiny-Base:support-bot", messages=[{"role": "user", "content": "hi"}]
        )
        assert engine.asked[0]["adapter"]["model_id"] == made[1][2]
    with pytest.raises(openai.NotFoundError):
        await sdk.models.delete(short)
    foreign = api.sdk(await api.new_key("admin", project="proj-foreign"))
    with pytest.raises(openai.NotFoundError):
        await foreign.models.retrieve(short)
    assert (await sdk.models.delete(names[1])).deleted
    assert (await sdk.models.retrieve(short)).id == names[0]


async def test_the_weights_of_a_model_are_files_of_its_job_and_go_with_it(api: Api) -> None:
    sdk, name = api.sdk(), f"ft:{TINY}:default:weights:1"
    file_id = new_id("file-", datetime.now(UTC))
    key = f"org-default/proj-default/models/{file_id}/"
    weights = [{"id": file_id, "name": "adapter_model.safetensors", "bytes": 10, "sha256": "0" * 64}]
    story, model_id = await _staged_model(api, name, weights_files=weights)
    fact = f.FileGenerated(
        filename="m/adapter_model.safetensors",
        bytes=10,
        sha256="0" * 64,
        purpose="fine-tune-results",
        object_key=key + "adapter_model.safetensors",
        job_id=story.id,
    )
    await create(api.db, fact, file_id, {**OWNED, **fact.model_dump(mode="json")}, actor=ACTOR)
    owned = {"org": "org-default", "project": "proj-default", "sha256": "0" * 64, "num_bytes": 10}
    for reference in (f"file/{file_id}", f"model/{model_id}"):
        await ledger.record(api.db, key, reference=reference, **owned)
    registered = f.ModelRegistered(model_id=model_id, model_name=name, weights_files=(file_id,))
    await story.tell(registered, op_id="registered")
    await advance(api.db, Kind.MODEL, model_id, f.ModelPublished(name=name, job_id=story.id), actor=ACTOR)
    assert (await sdk.fine_tuning.jobs.retrieve(story.id)).result_files == [file_id]
    assert (await sdk.files.retrieve(file_id)).purpose == "fine-tune-results"
    await sdk.models.delete(name)
    with pytest.raises(openai.NotFoundError):
        await sdk.files.retrieve(file_id)
    row = await api.db["objects"].find_one({"_id": key})
    assert row is not None
    assert row["references"] == []


async def test_a_base_cannot_be_deleted_and_answers_to_its_alias(api: Api) -> None:
    sdk = api.sdk()
    assert (await sdk.models.retrieve("some/Tiny-Base")).id == TINY
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await sdk.models.delete(TINY)
    assert caught.value.code == "base_model_not_deletable"


async def test_without_an_engine_clients_are_told_to_come_again(api: Api) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await api.sdk().chat.completions.create(model=TINY, messages=[{"role": "user", "content": "hi"}])
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 120


async def test_chat_goes_to_an_engine_with_its_adapter_and_on_to_the_next_when_that_is_busy(api: Api) -> None:
    sdk = api.sdk()
    name = "ft:tiny:default:chat:5678"
    story, model_id = await _staged_model(api, name)
    await story.tell(f.ModelRegistered(model_id=model_id, model_name=name), op_id="registered")
    one, two = Engine("engine-one"), Engine("engine-two")
    async with joined(api.db, one, TINY), joined(api.db, two, TINY):
        messages: Any = [{"role": "user", "content": "hi"}]
        answers = {
            (await sdk.chat.completions.create(model=name, messages=messages, n=1, user="u")).choices[0].message.content
            for _ in range(4)
        }
        assert len(answers) == 1
        asked = (one.asked or two.asked)[0]
        blob = make_blob()
        assert asked["adapter"] == {
            "model_id": model_id,
            "key": blob.key,
            "manifest_sha256": blob.manifest_sha256,
            "base_digest": "0" * 64,
        }
        assert (asked["base"], asked["project"], asked["model"]) == (TINY, "proj-default", name)
        assert "user" not in asked
        first, second = (one, two) if one.asked else (two, one)
        first.status = 429
        stream = await sdk.chat.completions.create(model=name, messages=messages, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
        assert pieces == [second.name]
        second.status = 503
        with pytest.raises(openai.InternalServerError):
            await sdk.chat.completions.create(model=name, messages=messages)
        first.status = 400
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model=name, messages=messages)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")


async def test_a_client_that_leaves_ends_the_engines_work(api: Api) -> None:
    engine = Engine("engine-slow", is_slow=True)
    async with joined(api.db, engine, TINY), asyncio.timeout(20):
        messages: Any = [{"role": "user", "content": "hi"}]
        asking = asyncio.create_task(api.sdk().chat.completions.create(model=TINY, messages=messages))
        await engine.until_asked()
        asking.cancel()
        await engine.left.wait()


async def test_several_choices_have_seeds_of_their_own_and_the_prompt_counts_once(api: Api) -> None:
    engine = Engine("engine-choices")
    async with (
        joined(api.db, engine, TINY),
        AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key, _strict_response_validation=True) as sdk,
    ):
        answer = await sdk.chat.completions.create(
            model=TINY, messages=[{"role": "developer", "content": [{"type": "text", "text": "x"}]}], n=3, seed=7
        )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"engine-choices"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (1, 3, 4)
    assert sorted(body["seed"] for body in engine.asked) == [7, 8, 9]


async def test_a_streamed_chat_ends_with_its_usage_where_asked(api: Api) -> None:
    engine = Engine("engine-usage", pieces=("a", "b"))
    async with joined(api.db, engine, TINY):
        stream = await api.sdk().chat.completions.create(
            model=TINY,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": False},
        )
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        chunks = [chunk async for chunk in stream]
    assert [choice.delta.content for chunk in chunks for choice in chunk.choices] == ["a", "b"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 2


async def test_an_answer_may_be_sent_back_as_it_came(api: Api) -> None:
    """Its empty fields ask for nothing."""
    engine, sdk = Engine("engine-back"), api.sdk()
    async with joined(api.db, engine, TINY):
        said = (await sdk.chat.completions.create(model=TINY, messages=[HI])).choices[0].message
        messages: Any = [HI, said.model_dump() | {"annotations": []}, HI]
        await sdk.chat.completions.create(model=TINY, messages=messages)
    assert len(engine.asked[1]["messages"]) == 3


async def test_an_engine_that_fails_within_a_streamed_answer_is_told_by_a_code_of_the_list(api: Api) -> None:
    engine = Engine("engine-broken", pieces=("a", "b"), breaks_off=True)
    async with joined(api.db, engine, TINY):
        stream = await api.sdk().chat.completions.create(model=TINY, messages=[HI], stream=True)
        with pytest.raises(openai.APIError) as caught:
            [chunk async for chunk in stream]
    assert caught.value.code == "engine_unavailable"


async def test_the_mka1_client_chats_whole_and_streamed(api: Api) -> None:
    engine = Engine("engine-mka1", pieces=("a", "b"))
    messages: Any = [{"role": "user", "content": "hi"}]
    async with joined(api.db, engine, TINY), SDK(bearer_auth=api.key, server_url=api.url) as mka1:
        whole: Any = await mka1.llm.chat.create_chat_async(model=TINY, messages=messages, max_tokens=5)
        assert (whole.choices[0].message.content, whole.usage.total_tokens) == ("ab", 2)
        assert engine.asked[-1]["max_tokens"] == 5
        with pytest.deprecated_call():
            stream = await mka1.llm.chat.stream_async(model=TINY, messages=messages)
        events: list[Any] = [event async for event in stream]
        assert [event.event for event in events] == ["message", "message", "message", "done"]
        said = [choice.delta.content for event in events[:-1] for choice in event.data.choices]
        assert said == ["a", "b"]
        engine.breaks_off = True
        with pytest.deprecated_call():
            stream = await mka1.llm.chat.stream_async(model=TINY, messages=messages)
        assert [event.event async for event in stream][-1] == "error"


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "nobody"}, 404, "model", "model_not_found"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        ({"n": 2, "stream": True}, 400, "n", "unsupported_parameter"),
        ({"n": 9}, 400, "n", "invalid_value"),
        ({"logprobs": True}, 400, "logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
        ({"adapter": {"key": "x"}}, 400, "adapter", "unknown_parameter"),
        ({"base": "x"}, 400, "base", "unknown_parameter"),
        ({"messages": "hi"}, 400, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{**HI, "colour": "red"}]}, 400, "messages[0].colour", "unsupported_parameter"),
        ({"messages": [HI, {**HI, "audio": {"id": "x"}}]}, 400, "messages[1].audio", "unsupported_parameter"),
        ({"messages": [CACHED]}, 400, "messages[0].content[0].cache_control", "unsupported_parameter"),
        ({"seed": True}, 400, "seed", "invalid_value"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            *(400, "stream_options.include_obfuscation", "unsupported_parameter"),
        ),
        ({"stream": "yes"}, 400, "stream", "invalid_value"),
    ],
)
async def test_chat_refuses_by_name(api: Api, body: dict[str, Any], status: int, param: str, code: str) -> None:
    async with api.http() as http:
        asked = {"model": TINY, "messages": [{"role": "user", "content": "hi"}]} | body
        answer = await http.post("/v1/chat/completions", json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
