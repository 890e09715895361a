"""Fine-tuning jobs through the openai SDK: create, look, verbs, and repetitions."""

import json
from typing import Any

import openai
import pytest
from openai.types import FileObject

from builders.jobs import JobStory, make_step
from integration.api.conftest import MAX_QUEUED, TINY, Api
from luthier_common.contract import events as f

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
URL = "/v1/fine_tuning/jobs"


def nested(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


@pytest.fixture(scope="session")
async def file(api: Api) -> FileObject:
    return await api.sdk().files.create(file=("train-jobs.jsonl", LINE * 20), purpose="fine-tune")


async def test_a_job_is_made_as_asked(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    job = await sdk.fine_tuning.jobs.create(
        model=TINY,
        training_file=file.id,
        suffix="shop-bot",
        metadata={"team.name": "a", "$x": "$y"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    )
    assert (job.object, job.status, job.model, job.training_file) == (
        "fine_tuning.job",
        "validating_files",
        TINY,
        file.id,
    )
    assert job.fine_tuned_model is None
    assert job.error is None
    assert job.trained_tokens is None
    assert job.result_files == []
    assert 0 <= job.seed < 2**31
    assert job.metadata == {"team.name": "a", "$x": "$y"}
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, "auto")
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.model_dump() == job.hyperparameters.model_dump()
    again = await sdk.fine_tuning.jobs.retrieve(job.id)
    assert again == job
    assert (await sdk.fine_tuning.jobs.retrieve(job.id.replace("-", "_"))).id == job.id


async def test_an_alias_and_a_file_name_are_understood(api: Api, file: FileObject) -> None:
    await api.sdk().files.create(file=("train-jobs.jsonl", b"{}\n"), purpose="assistants")
    job = await api.sdk().fine_tuning.jobs.create(model="some/Tiny-Base", training_file="train-jobs.jsonl")
    assert (job.model, job.training_file) == (TINY, file.id), "the newest of this name is not for training"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "nobody"}, "model", "model_not_found"),
        ({"training_file": "file-000000000000000000000000"}, "training_file", "file_not_found"),
        ({"validation_file": "nothing.jsonl"}, "validation_file", "file_not_found"),
        ({"suffix": "a:b"}, "suffix", "invalid_value"),
        ({"seed": 2**60}, "seed", "invalid_value"),
        ({"seed": True}, "seed", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_value"),
        ({"surprise": 1}, "surprise", "unknown_parameter"),
        ({"status": "succeeded"}, "status", "unknown_parameter"),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].wandb", "missing_required_parameter"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "unsupported_parameter"),
        ({"method": {"type": "dpo"}}, "method", "unsupported_method"),
        ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"context_length": 1024}}, "hyperparameters.context_length", "invalid_value"),
        ({"hyperparameters": {"epochs": 1}}, "hyperparameters.epochs", "unknown_parameter"),
        (nested(n_epochs=51), "method.supervised.hyperparameters.n_epochs", "invalid_value"),
        (nested(context_length=1024), "method.supervised.hyperparameters.context_length", "invalid_value"),
        (nested(lora=False), "method.supervised.hyperparameters.lora", "unsupported_parameter"),
        (
            {"integrations": [{"type": "wandb", "wandb": {}}]},
            "integrations[0].wandb.project",
            "missing_required_parameter",
        ),
        ({"training_file": None}, "training_file", "invalid_value"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    api: Api, file: FileObject, body: dict[str, Any], param: str, code: str
) -> None:
    async with api.http() as http:
        answer = await http.post(URL, json={"model": TINY, "training_file": file.id} | body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert set(error) == {"message", "type", "param", "code", "request_id"}


async def test_a_missing_parameter_is_named(api: Api) -> None:
    async with api.http() as http:
        answer = await http.post(URL, json={"model": TINY})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "training_file", "missing_required_parameter")


async def test_a_repeated_create_makes_one_job(api: Api, file: FileObject) -> None:
    body = {"model": TINY, "training_file": file.id, "suffix": "again"}
    async with api.http() as http:
        first = (await http.post(URL, json=body)).json()["id"]
        retried = (await http.post(URL, json=body, headers={"x-stainless-retry-count": "1"})).json()["id"]
        meant = (await http.post(URL, json=body)).json()["id"]
        keyed = [(await http.post(URL, json=body, headers={"idempotency-key": "k1"})).json()["id"] for _ in range(2)]
        reused = await http.post(URL, json=body | {"seed": 1}, headers={"idempotency-key": "k1"})
    assert first == retried != meant
    assert keyed[0] == keyed[1] not in (first, meant)
    assert (reused.status_code, reused.json()["error"]["code"]) == (400, "idempotency_key_reused")


async def test_jobs_are_listed_by_pages_and_metadata(api: Api) -> None:
    key = await api.new_key("admin", project="proj-joblist")
    sdk = api.sdk(key)
    file = await sdk.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    made = [
        await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id, metadata={"n.": str(n % 2)})
        for n in range(5)
    ]
    plain = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    everything = [job.id async for job in sdk.fine_tuning.jobs.list(limit=2)]
    assert everything == [job.id for job in [plain, *reversed(made)]]
    odd = await sdk.fine_tuning.jobs.list(metadata={"n.": "1"})
    assert [job.id for job in odd.data] == [made[3].id, made[1].id]
    async with api.http(key) as http:
        without = (await http.get(f"{URL}?metadata=null")).json()
        beyond = await http.get(f"{URL}?limit=0")
        unknown = await http.get(f"{URL}?owner=me")
        foreign = await http.get(f"{URL}?after=file-1")
    assert [job["id"] for job in without["data"]] == [plain.id]
    assert without["has_more"] is False
    for refused, param in ((beyond, "limit"), (unknown, "owner"), (foreign, "after")):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_cancel_is_final_and_may_be_repeated(api: Api, file: FileObject) -> None:
    sdk = api.sdk(max_retries=2)
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    assert (await sdk.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    again = await sdk.fine_tuning.jobs.cancel(job.id)
    assert (again.status, again.finished_at is not None) == ("cancelled", True)
    with pytest.raises(openai.ConflictError) as caught:
        await sdk.fine_tuning.jobs.pause(job.id)
    assert caught.value.code == "invalid_state"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


async def test_a_waiting_job_pauses_at_once_and_a_running_one_when_it_has_saved(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    with pytest.raises(openai.ConflictError):
        await sdk.fine_tuning.jobs.pause(job.id)
    story = JobStory(api.db, job.id)
    await story.accepted()
    assert (await sdk.fine_tuning.jobs.pause(job.id)).status == "paused"
    assert (await sdk.fine_tuning.jobs.resume(job.id)).status == "queued"
    with pytest.raises(openai.ConflictError):
        await sdk.fine_tuning.jobs.resume(job.id)
    await story.placed()
    await story.started()
    await story.tell(make_step(1), attempt=1)
    running = await sdk.fine_tuning.jobs.retrieve(job.id)
    assert (running.status, running.trained_tokens, running.hyperparameters.n_epochs) == ("running", 50, 2)
    assert running.estimated_finish is not None
    pausing = await sdk.fine_tuning.jobs.pause(job.id)
    assert (pausing.status, pausing.x_state) == ("running", "pausing")  # type: ignore[attr-defined]
    await story.tell(f.RunPaused(step=1), attempt=1, op_id="1/RunPaused")
    assert (await sdk.fine_tuning.jobs.retrieve(job.id)).status == "paused"


async def test_a_failed_job_says_why(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    problem = f.Problem(code="invalid_n_examples", message="too few", param="training_file", owner="user")
    await JobStory(api.db, job.id).tell(f.DataRejected(problem=problem))
    failed = await sdk.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.message, failed.error.param) == (
        "invalid_n_examples",
        "too few",
        "training_file",
    )
    assert failed.hyperparameters.n_epochs == "auto"


async def test_too_many_waiting_jobs_are_told_to_come_later(api: Api) -> None:
    key = await api.new_key("admin", project="proj-crowd")
    sdk = api.sdk(key)
    file = await sdk.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    for _ in range(MAX_QUEUED):
        await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    assert caught.value.code == "too_many_queued_jobs"
    assert int(caught.value.response.headers["retry-after"]) <= 120


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model": "\xff"}',
        b"{",
        b"",
        b"[]",
        b"\xef\xbb\xbf{}",
        json.dumps({"model": "x", "training_file": "\x00"}).encode(),
        b'{"model": NaN}',
    ],
)
async def test_hostile_json_is_a_400(api: Api, body: bytes) -> None:
    async with api.http() as http:
        answer = await http.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code", "request_id"}


async def test_a_body_above_the_limit_is_refused(api: Api) -> None:
    async with api.http() as http:
        answer = await http.post(URL, content=b" " * 1_200_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
