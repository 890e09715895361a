"""The openai library, sync and async, parsing strictly: every method of files, jobs and models that we serve."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from openai import APIResponseValidationError, AsyncOpenAI, OpenAI

from builders.stories import fail, queue, read_file, succeed, train
from builders.waiting import until
from integration.api.conftest import TINY, Api
from integration.clients.conftest import LINE, Half

STRICT = {"x-luthier-strict": "true"}


@pytest.fixture(params=["sync", "async"])
def half(request: pytest.FixtureRequest) -> Half:
    return Half(is_async=request.param == "async")


@pytest.fixture
async def sdk(api: Api, half: Half) -> AsyncIterator[Any]:
    make: Any = AsyncOpenAI if half.is_async else OpenAI
    client = make(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0, _strict_response_validation=True)
    yield client
    await half(client.close)


async def upload(sdk: Any, half: Half, name: str = "train.jsonl", **more: Any) -> Any:
    return await half(sdk.files.create, file=(name, LINE * 20), purpose="fine-tune", **more)


async def create(sdk: Any, half: Half, **more: Any) -> Any:
    file = await upload(sdk, half)
    return await half(sdk.fine_tuning.jobs.create, model=TINY, training_file=file.id, **more)


@pytest.mark.filterwarnings("ignore:The `.content:DeprecationWarning")
async def test_files(api: Api, sdk: Any, half: Half) -> None:
    file = await upload(sdk, half, "a b.jsonl", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (file.object, file.bytes, file.filename, file.purpose, file.status) == (
        "file",
        len(LINE) * 20,
        "a b.jsonl",
        "fine-tune",
        "uploaded",
    )
    assert file.expires_at == file.created_at + 3600
    assert await half(sdk.files.retrieve, file.id) == file
    second = await upload(sdk, half)
    page = await half(sdk.files.list, purpose="fine-tune", limit=1, order="desc")
    assert ([each.id for each in page.data], page.has_more) == ([second.id], True)
    after = await half(sdk.files.list, purpose="fine-tune", limit=1, after=second.id)
    assert [each.id for each in after.data] == [file.id]
    listed = [each.id for each in await half.items(page)]
    assert listed[:2] == [second.id, file.id]
    content = await half(sdk.files.content, file.id)
    assert content.content == LINE * 20
    assert await half(sdk.files.retrieve_content, file.id) == (LINE * 20).decode()
    await read_file(api.db, file.id)
    assert (await half(sdk.files.wait_for_processing, file.id, poll_interval=0.1)).status == "processed"
    gone = await half(sdk.files.delete, file.id)
    assert (gone.id, gone.object, gone.deleted) == (file.id, "file", True)
    with pytest.raises(openai.NotFoundError) as caught:
        await half(sdk.files.retrieve, file.id)
    assert caught.value.code == "not_found"
    assert caught.value.request_id


async def test_a_job_is_created_listed_and_retrieved(sdk: Any, half: Half) -> None:
    tag = f"{time.time_ns()}"
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}}
    first = await create(sdk, half, suffix="bot", seed=-7, metadata={"tag": tag}, method=method)
    second = await create(sdk, half, metadata={"tag": tag}, hyperparameters={"learning_rate_multiplier": 0.5})
    assert (first.status, first.seed, first.metadata, first.trained_tokens) == (
        "validating_files",
        -7,
        {"tag": tag},
        None,
    )
    assert (first.error, first.finished_at, first.fine_tuned_model, first.estimated_finish) == (None,) * 4
    assert (first.hyperparameters.n_epochs, first.hyperparameters.batch_size) == (3, "auto")
    assert first.method.supervised.hyperparameters.n_epochs == 3
    assert await half(sdk.fine_tuning.jobs.retrieve, first.id) == first
    page = await half(sdk.fine_tuning.jobs.list, limit=1, metadata={"tag": tag})
    assert [job.id for job in page.data] == [second.id]
    assert [job.id for job in await half.items(page)] == [second.id, first.id]
    rest = await half(sdk.fine_tuning.jobs.list, after=second.id, metadata={"tag": tag})
    assert [job.id for job in rest.data] == [first.id]
    raw = await half(sdk.fine_tuning.jobs.with_raw_response.retrieve, first.id)
    assert raw.headers["x-request-id"].startswith("req_")


async def test_pause_resume_and_cancel_with_the_strict_switch(api: Api, sdk: Any, half: Half) -> None:
    jobs = sdk.fine_tuning.jobs
    job = await create(sdk, half)
    await queue(api.db, job.id)
    paused = await half(jobs.pause, job.id, extra_headers=STRICT)
    assert (paused.status, paused.x_state) == ("queued", "paused")
    with pytest.raises(APIResponseValidationError):
        await half(jobs.retrieve, job.id)
    listed = await half(jobs.list, limit=1, extra_headers=STRICT)
    assert (listed.data[0].id, listed.data[0].status, listed.data[0].x_state) == (job.id, "queued", "paused")
    resumed = await half(jobs.resume, job.id)
    assert (resumed.status, resumed.x_state, resumed.estimated_finish) == ("queued", "waiting", None)
    assert (await half(jobs.cancel, job.id)).status == "cancelled"
    assert (await half(jobs.cancel, job.id)).status == "cancelled"
    with pytest.raises(openai.ConflictError) as caught:
        await half(jobs.resume, job.id)
    assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("invalid_state", "false")


async def test_events_checkpoints_and_the_model_of_a_job(api: Api, sdk: Any, half: Half) -> None:
    jobs = sdk.fine_tuning.jobs
    job = await create(sdk, half)
    story = await train(api.db, job.id)
    running = await half(jobs.retrieve, job.id)
    assert (running.status, running.trained_tokens, running.hyperparameters.n_epochs) == ("running", 150, 2)
    assert running.estimated_finish is not None
    name = f"ft:tiny-base/x:org:{half.is_async}:{job.id[-8:]}"
    await succeed(api.db, story, name)
    done = await half(jobs.retrieve, job.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", name)
    assert done.finished_at is not None

    async def all_events() -> list[Any]:
        events = await half.items(await half(jobs.list_events, job.id, limit=2))
        return events if events and events[0].message.startswith("The job has successfully completed") else []

    events = await until(all_events)
    messages = [event.message for event in events]
    assert messages[-1] == f"Created fine-tuning job: {job.id}"
    assert f"New fine-tuned model created: {name}" in messages
    assert len({event.id for event in events}) == len(events)
    metrics = [event for event in events if event.type == "metrics"]
    assert metrics[-1].data["step"] == 1
    checkpoints = await half(jobs.checkpoints.list, job.id)
    assert [(each.step_number, each.fine_tuning_job_id) for each in checkpoints.data] == [(3, job.id)]
    assert checkpoints.data[0].metrics.train_loss == 0.5
    after = await half(jobs.checkpoints.list, job.id, after=checkpoints.data[0].id, limit=1)
    assert after.data == []
    models = [model.id for model in await half.items(await half(sdk.models.list))]
    assert {TINY, name} <= set(models)
    model = await half(sdk.models.retrieve, name)
    assert (model.object, model.owned_by) == ("model", "org-default")
    gone = await half(sdk.models.delete, name)
    assert (gone.id, gone.deleted) == (name, True)
    with pytest.raises(openai.NotFoundError):
        await half(sdk.models.retrieve, name)


async def test_why_a_job_failed(api: Api, sdk: Any, half: Half) -> None:
    job = await create(sdk, half)
    await fail(api.db, job.id)
    failed = await half(sdk.fine_tuning.jobs.retrieve, job.id)
    assert (failed.status, failed.error.code, failed.error.param) == ("failed", "row_too_long", "training_file")
    assert (failed.error.message, failed.error.owner, failed.error.retryable) == ("Too long.", "user", False)
    assert failed.hyperparameters.n_epochs == "auto"


@pytest.mark.parametrize("method", ["dpo", "reinforcement"])
async def test_a_method_without_a_trainer_is_refused_by_name(sdk: Any, half: Half, method: str) -> None:
    grader = {"type": "string_check", "name": "same", "input": "a", "reference": "b", "operation": "eq"}
    payloads = {"dpo": {"hyperparameters": {"beta": 0.1}}, "reinforcement": {"grader": grader}}
    validation = await upload(sdk, half, "valid.jsonl")
    with pytest.raises(openai.BadRequestError) as caught:
        await create(sdk, half, method={"type": method, method: payloads[method]}, validation_file=validation.id)
    assert (caught.value.code, caught.value.param) == ("unsupported_method", "method")
    assert method in caught.value.message


async def test_an_integration_is_refused_without_its_token(sdk: Any, half: Half) -> None:
    hub = {"type": "hf", "hf": {"output_repo_name": "me/bot", "api_token": "hf_secret"}}
    with pytest.raises(openai.BadRequestError) as caught:
        await create(sdk, half, integrations=[hub])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "integrations")
    assert "hf_secret" not in caught.value.response.text


async def test_a_stopped_answer_is_sent_again_and_makes_one_job(api: Api, half: Half) -> None:
    """The first answer is lost on its way; the library's own repetition finds the job that it made."""
    lost: list[int] = []

    def lose_first(response: Any) -> None:
        if response.request.url.path.endswith("/jobs") and not lost:
            lost.append(response.status_code)
            raise httpx2.ReadError("lost on the way")

    async def lose_first_async(response: Any) -> None:
        lose_first(response)

    make_http: Any = httpx2.AsyncClient if half.is_async else httpx2.Client
    make: Any = AsyncOpenAI if half.is_async else OpenAI
    http = make_http(event_hooks={"response": [lose_first_async if half.is_async else lose_first]})
    client = make(base_url=f"{api.url}/v1", api_key=api.key, max_retries=2, http_client=http)
    tag = f"retry-{time.time_ns()}"
    job = await create(client, half, metadata={"tag": tag})
    assert lost == [200]
    assert [each.id for each in await half.items(await half(client.fine_tuning.jobs.list, metadata={"tag": tag}))] == [
        job.id
    ]
    await half(client.close)
