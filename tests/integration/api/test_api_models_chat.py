"""Models, and chat completions passed to engines: two small HTTP servers stand for inference nodes."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import uvicorn

from builders.jobs import OWNED, JobStory, make_blob
from integration.api.conftest import TINY, Api
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create

ACTOR = Actor(room="test")
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@dataclass
class Engine:
    """An engine that answers with its own name, or with an error."""

    name: str
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    is_slow: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        content = b""
        while True:
            message = await receive()
            content += message["body"]
            if not message.get("more_body"):
                break
        body = json.loads(content)
        self.asked.append(body)
        if self.is_slow and (await receive())["type"] == "http.disconnect":
            self.left.set()
            return
        head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        if self.status != 200:
            error = {"message": "bad", "type": "invalid_request_error", "param": "messages", "code": "bad_messages"}
            answer = json.dumps({"error": error}).encode()
        elif body.get("stream"):
            choices = [{"index": 0, "delta": {"content": self.name}, "finish_reason": "stop"}]
            chunk = head | {"object": "chat.completion.chunk", "choices": choices}
            answer = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        else:
            said = {"role": "assistant", "content": self.name}
            choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
            answer = json.dumps(head | {"object": "chat.completion", "choices": choices, "usage": USAGE}).encode()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": answer})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _joined(api: Api, engine: Engine) -> AsyncIterator[None]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(uvicorn.Config(engine, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    fact = f.NodeJoined(role="inference", num_slots=0, device="cpu", address=address)
    fields = {"org": "system", "project": "system", "owner": "system", "slots": [], "bases": [TINY]}
    await create(api.db, fact, engine.name, fields, actor=ACTOR)
    await advance(api.db, Kind.NODE, engine.name, fact, actor=ACTOR)
    await api.db["nodes"].update_one({"_id": engine.name}, [{"$set": {"renewed_at": "$$NOW"}}])
    try:
        yield
    finally:
        await advance(api.db, Kind.NODE, engine.name, f.NodeLeft(), actor=ACTOR)
        server.should_exit = True
        await task
        listener.close()


async def _staged_model(api: Api, name: str) -> tuple[JobStory, str]:
    """A job whose model is staged, not yet registered."""
    story = await JobStory.created(api.db)
    await story.in_training()
    finished = f.RunFinished(step=6, artifact=make_blob(), trained_tokens=300, train_loss=0.5)
    await story.tell(finished, attempt=1, op_id="1/RunFinished")
    model_id = f"ftmodel-{story.id[6:]}"
    fields = {**OWNED, "name": name, "job": story.id, "base": TINY, "blob": make_blob().model_dump(mode="json")}
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
    assert (await sdk.models.delete(name)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve(name)


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
    async with _joined(api, one), _joined(api, two):
        messages: Any = [{"role": "user", "content": "hi"}]
        answers = {
            (await sdk.chat.completions.create(model=name, messages=messages, n=1, user="u")).choices[0].message.content
            for _ in range(4)
        }
        assert len(answers) == 1
        asked = (one.asked or two.asked)[0]
        blob = make_blob()
        assert asked["adapter"] == {"model_id": model_id, "key": blob.key, "manifest_sha256": blob.manifest_sha256}
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
        assert (caught.value.code, caught.value.param) == ("bad_messages", "messages")


async def test_a_client_that_leaves_ends_the_engines_work(api: Api) -> None:
    engine = Engine("engine-slow", is_slow=True)
    async with _joined(api, engine), asyncio.timeout(20):
        with pytest.raises(openai.APITimeoutError):
            await (
                api.sdk()
                .with_options(timeout=1.0)
                .chat.completions.create(model=TINY, messages=[{"role": "user", "content": "hi"}])
            )
        await engine.left.wait()


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "nobody"}, 404, "model", "model_not_found"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        ({"n": 2}, 400, "n", "unsupported_parameter"),
        ({"adapter": {"key": "x"}}, 400, "adapter", "unknown_parameter"),
        ({"base": "x"}, 400, "base", "unknown_parameter"),
        ({"messages": "hi"}, 400, "messages", "invalid_value"),
        ({"stream": "yes"}, 400, "stream", "invalid_value"),
    ],
)
async def test_chat_refuses_by_name(api: Api, body: dict[str, Any], status: int, param: str, code: str) -> None:
    async with api.http() as http:
        asked = {"model": TINY, "messages": [{"role": "user", "content": "hi"}]} | body
        answer = await http.post("/v1/chat/completions", json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
