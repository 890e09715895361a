"""The meetkai-mka1 library, sync and async: every method of it that we serve, and end users."""

import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from meetkai_mka1 import SDK
from meetkai_mka1.errors import SDKError

from builders.stories import fail, queue, succeed, train
from builders.waiting import until
from integration.api.conftest import TINY, Api
from integration.clients.conftest import LINE, SAID, Half

pytestmark = pytest.mark.filterwarnings("ignore:warning. .. DEPRECATED:DeprecationWarning")
"""The library itself says so of its fine-tuning methods."""
USER = {"X-On-Behalf-Of": "user-1"}


@pytest.fixture(params=["sync", "async"])
def half(request: pytest.FixtureRequest) -> Half:
    return Half(is_async=request.param == "async")


class Llm:
    """`sdk.llm`, whose async methods have names of their own; of each answer that comes in pages, the first page."""

    def __init__(self, sdk: SDK, half: Half) -> None:
        self._llm = sdk.llm
        self._half = half

    async def __call__(self, name: str, /, **kwargs: Any) -> Any:
        group, _, method = name.partition(".")
        found = getattr(getattr(self._llm, group), f"{method}_async" if self._half.is_async else method)
        return await self._half(found, **kwargs)


@pytest.fixture
async def llm(api: Api, half: Half) -> AsyncIterator[Llm]:
    if half.is_async:
        async with SDK(bearer_auth=f"Bearer {api.key}", server_url=api.url) as sdk:
            yield Llm(sdk, half)
    else:
        with SDK(bearer_auth=f"Bearer {api.key}", server_url=api.url) as sdk:
            yield Llm(sdk, half)


async def upload(llm: Llm, **more: Any) -> Any:
    file = {"file_name": "train.jsonl", "content": LINE * 20}
    return await llm("files.upload", file=file, purpose="fine-tune", **more)


async def test_files(llm: Llm, half: Half) -> None:
    file = await upload(llm)
    assert file.id.startswith("file_")
    assert (file.object, file.bytes_, file.filename, file.purpose) == (
        "file",
        len(LINE) * 20,
        "train.jsonl",
        "fine-tune",
    )
    assert (await llm("files.get", file_id=file.id)).id == file.id
    listed = await llm("files.list", purpose="fine-tune")
    assert file.id in [each.id for each in listed.data]
    same = await llm("files.list", sha256=hashlib.sha256(LINE * 20).hexdigest(), limit=100)
    assert file.id in [each.id for each in same.data]
    assert (await llm("files.list", sha256="0" * 64)).data == []
    await upload(llm)
    one = await llm("files.list", limit=1, order="asc")
    assert (len(one.data), one.has_more) == (1, True)
    content = await llm("files.content", file_id=file.id)
    assert await _read(content, half) == LINE * 20
    gone = await llm("files.delete", file_id=file.id)
    assert (gone.id, gone.deleted) == (file.id, True)
    with pytest.raises(SDKError) as caught:
        await llm("files.get", file_id=file.id)
    assert caught.value.status_code == 404


async def test_the_eight_verbs_of_fine_tuning(api: Api, llm: Llm, half: Half) -> None:
    file = await upload(llm)
    job = await llm(
        "fine_tuning.create",
        model=TINY,
        training_file=file.id,
        suffix="support-bot",
        seed=-42,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": None}}},
        hyperparameters=None,
        integrations=None,
        metadata={"experiment": "support-bot-v1"},
    )
    assert job.id.startswith("ftjob_")
    assert (job.status, job.seed, job.training_file, job.suffix) == ("validating_files", -42, file.id, "support-bot")
    assert job.hyperparameters.n_epochs == 3
    assert (await llm("fine_tuning.retrieve", fine_tuning_job_id=job.id)).id == job.id
    assert job.id in [each.id for each in (await llm("fine_tuning.list", limit=100)).data]
    await queue(api.db, job.id)
    assert (await llm("fine_tuning.pause", fine_tuning_job_id=job.id)).status == "paused"
    assert (await llm("fine_tuning.resume", fine_tuning_job_id=job.id)).status == "queued"
    assert (await llm("fine_tuning.cancel", fine_tuning_job_id=job.id)).status == "cancelled"
    again = await llm("fine_tuning.create", model=TINY, training_file=file.id, metadata={"n": f"{time.time_ns()}"})
    story = await train(api.db, again.id)
    name = f"ft:mka1:{half.is_async}:{again.id[-8:]}"
    await succeed(api.db, story, name)

    async def last_event() -> bool:
        page = await llm("fine_tuning.list_events", fine_tuning_job_id=again.id, limit=1)
        return bool(page.has_more) and page.data[0].message.startswith("The job has successfully completed")

    await until(last_event)
    checkpoints = await llm("fine_tuning.list_checkpoints", fine_tuning_job_id=again.id, limit=10)
    assert [each.step_number for each in checkpoints.data] == [3]
    assert (await llm("fine_tuning.retrieve", fine_tuning_job_id=again.id)).fine_tuned_model == name
    assert name in [each.id for each in (await llm("models.list")).data]
    assert (await llm("models.get", model_id=name)).id == name


async def test_why_a_job_failed(api: Api, llm: Llm) -> None:
    file = await upload(llm)
    job = await llm("fine_tuning.create", model=TINY, training_file=file.id, metadata={"n": f"{time.time_ns()}"})
    assert job.error is None
    await fail(api.db, job.id)
    failed = await llm("fine_tuning.retrieve", fine_tuning_job_id=job.id)
    assert failed.status == "failed"
    assert (failed.error.code, failed.error.message, failed.error.param) == (
        "row_too_long",
        "Too long.",
        "training_file",
    )
    listed = await llm("fine_tuning.list", limit=100)
    assert [each.error for each in listed.data if each.id == job.id] == [failed.error]


@pytest.mark.usefixtures("engine")
async def test_chat_whole_and_streamed(llm: Llm, half: Half) -> None:
    asked: Any = {"model": TINY, "messages": [{"role": "user", "content": "hi"}]}
    whole = await llm("chat.create_chat", **asked)
    assert (whole.choices[0].message.content, whole.usage.total_tokens) == ("".join(SAID), 2)
    events = await half.items(await llm("chat.stream", **asked))
    assert events[-1].event == "done"
    assert [choice.delta.content for event in events[:-1] for choice in event.data.choices] == list(SAID)
    text = await llm("chat.create_chat", **asked, stream=True)  # the library hands the stream over unread
    *chunks, end = text.replace("data: ", "").split("\n\n")[:-1]
    said = [choice["delta"]["content"] for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert (said, end) == (list(SAID), "[DONE]")


@pytest.mark.usefixtures("engine")
async def test_responses_are_made_streamed_read_and_deleted(llm: Llm, half: Half) -> None:
    made = await llm("responses.create", model=TINY, input="hi")
    assert (made.status, made.output_text) == ("completed", "".join(SAID))
    events = [
        event.data for event in await half.items(await llm("responses.create", model=TINY, input="hi", stream=True))
    ]
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == list(SAID)
    assert (await llm("responses.get", response_id=made.id)).output_text == made.output_text
    assert (await llm("responses.list_input_items", response_id=made.id)).data[0].role == "user"
    assert (await llm("responses.delete", response_id=made.id)).deleted
    with pytest.raises(SDKError) as caught:
        await llm("responses.get", response_id=made.id)
    assert caught.value.status_code == 404


async def test_what_is_refused_tells_why(llm: Llm) -> None:
    with pytest.raises(SDKError) as caught:
        await llm("fine_tuning.create", model="nobody:knows", training_file="file_1")
    assert caught.value.status_code == 400
    assert "model_not_found" in caught.value.body


async def test_a_file_of_an_end_user_and_a_job_made_without(api: Api, llm: Llm) -> None:
    file = await upload(llm, x_on_behalf_of="user-1")
    assert (await llm("files.get", file_id=file.id)).id == file.id
    job = await llm("fine_tuning.create", model=TINY, training_file=file.id, metadata={"n": f"{time.time_ns()}"})
    assert job.training_file == file.id
    seen = await llm("fine_tuning.retrieve", fine_tuning_job_id=job.id, http_headers=USER)
    assert seen.id == job.id
    own = await llm(
        "fine_tuning.create", model=TINY, training_file=file.id, metadata={"o": f"{time.time_ns()}"}, http_headers=USER
    )
    other = {"X-On-Behalf-Of": "user-2"}
    for call in (
        llm("files.get", file_id=file.id, x_on_behalf_of="user-2"),
        llm("files.content", file_id=file.id, x_on_behalf_of="user-2"),
        llm("files.delete", file_id=file.id, x_on_behalf_of="user-2"),
        llm("fine_tuning.retrieve", fine_tuning_job_id=own.id, http_headers=other),
        llm("fine_tuning.list_events", fine_tuning_job_id=own.id, http_headers=other),
        llm("fine_tuning.cancel", fine_tuning_job_id=own.id, http_headers=other),
    ):
        with pytest.raises(SDKError) as caught:
            await call
        assert caught.value.status_code == 404
    theirs = [each.id for each in (await llm("files.list", x_on_behalf_of="user-2")).data]
    assert file.id not in theirs
    assert own.id not in [each.id for each in (await llm("fine_tuning.list", limit=100, http_headers=other)).data]
    without_scope = await api.new_key("files:read", "fine-tuning:read")
    with pytest.raises(SDKError) as caught:
        await llm("files.get", file_id=file.id, http_headers={"Authorization": f"Bearer {without_scope}"} | USER)
    assert caught.value.status_code == 403


async def _read(content: Any, half: Half) -> bytes:
    read: bytes = await half(content.aread if half.is_async else content.read)
    return read
