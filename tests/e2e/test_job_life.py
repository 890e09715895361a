"""The life of a job as a user sees it through the `openai` SDK."""

import json
from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from builders.bases import write_chat_file
from builders.waiting import until
from builders.workshop import Workshop


async def test_from_an_uploaded_file_to_an_answering_model(workshop: Workshop, rows: Path, tmp_path: Path) -> None:
    client = workshop.client
    validation = await workshop.upload(write_chat_file(tmp_path / "validation.jsonl", 12, start=50))
    created = await workshop.create(rows, num_epochs=2, suffix="first", seed=3, validation_file=validation)
    assert created.status in ("validating_files", "queued")
    assert created.fine_tuned_model is None
    job = await workshop.ended(created.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:")
    assert ":first:" in job.fine_tuned_model
    assert job.trained_tokens
    assert job.hyperparameters.n_epochs == 2
    assert job.finished_at is not None

    messages = [event.message for event in await workshop.events(job.id)]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert "Files validated, moving job to queued state" in messages
    assert "Fine-tuning job started" in messages
    assert any(message.startswith("Step 12/12: training loss=") for message in messages)
    assert f"New fine-tuned model created: {job.fine_tuned_model}" in messages
    assert messages[-1] == "The job has successfully completed"
    await workshop.assert_told_exactly(job.id)

    checkpoints = [one async for one in client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert [one.step_number for one in checkpoints] == [12, 6]
    assert checkpoints[0].metrics.full_valid_loss is not None

    assert job.fine_tuned_model in [model.id async for model in client.models.list()]
    answer = await workshop.ask(job.fine_tuned_model)
    assert answer
    last, first = [one.fine_tuned_model_checkpoint for one in checkpoints]
    assert await workshop.ask(last) == answer
    assert await workshop.ask(first)
    metrics, *weights = job.result_files
    assert (await client.files.content(metrics)).text.startswith("step,train_loss,train_accuracy,valid_loss,")
    assert checkpoints[0].model_extra is not None
    for file_id, same_id in zip(weights, checkpoints[0].model_extra["result_files"], strict=True):
        file, same = await client.files.retrieve(file_id), await client.files.retrieve(same_id)
        assert file.filename.rpartition("/")[2] == same.filename.rpartition("/")[2]
        content = (await client.files.content(file_id)).content
        assert len(content) == file.bytes
        if file.filename.endswith(".safetensors"):
            assert content == (await client.files.content(same_id)).content
    stream = await client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        max_tokens=8,
        temperature=0,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.timeout(600)
async def test_a_job_pauses_holds_no_slot_and_goes_on_from_its_checkpoint(workshop: Workshop, rows: Path) -> None:
    client = workshop.client
    job = await workshop.create(rows, num_epochs=50)
    await workshop.steps(job.id, 10)
    await client.fine_tuning.jobs.pause(job.id)
    await workshop.in_phase(job.id, "paused")
    paused = await client.fine_tuning.jobs.retrieve(job.id)
    assert paused.status == "paused"  # type: ignore[comparison-overlap]
    stopped = await workshop.doc(job.id)

    async def slot_is_free() -> bool:
        held = {"role": "trainer", "slots.holder": {"$ne": None}}
        return await workshop.db["nodes"].find_one(held) is None

    await until(slot_is_free, what="a free slot")
    resumed = await client.fine_tuning.jobs.resume(job.id)
    assert resumed.status == "queued"
    ended = await workshop.ended(job.id, within_s=300)
    assert ended.status == "succeeded", ended.error
    assert (await workshop.doc(job.id))["last_step"] == 300
    # The first run behind the pause, whatever its number: a stalled machine may lose a lease, and so an attempt.
    later = {"thing": job.id, "type": "RunStarted", "body.attempt": {"$gt": stopped["attempt"]}}
    started = await workshop.db["events"].find_one(later, sort=[("seq", 1)])
    assert started is not None
    assert started["body"]["data"]["resumed_from_step"] == stopped["checkpoint"]["step"]
    await workshop.assert_told_exactly(job.id)


async def test_a_cancelled_job_is_final_at_once_and_frees_its_slot(workshop: Workshop, rows: Path) -> None:
    job = await workshop.create(rows, num_epochs=50)
    await workshop.steps(job.id, 5)
    cancelled = await workshop.client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    again = await workshop.client.fine_tuning.jobs.cancel(job.id)
    assert again.status == "cancelled"
    with pytest.raises(openai.ConflictError) as refused:
        await workshop.client.fine_tuning.jobs.resume(job.id)
    assert refused.value.code == "invalid_state"
    await workshop.assert_told_exactly(job.id)
    following = await workshop.create(rows)
    assert (await workshop.ended(following.id)).status == "succeeded"


async def test_a_file_with_bad_lines_fails_the_job_and_names_the_line(workshop: Workshop, tmp_path: Path) -> None:
    path = write_chat_file(tmp_path / "train.jsonl", 12)
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({"messages": [{"role": "robot", "content": "x"}]})
    path.write_text("\n".join(lines) + "\n")
    job = await workshop.ended((await workshop.create(path)).id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.param == "training_file"
    assert "line 5" in job.error.message.lower()
    assert job.fine_tuned_model is None


async def test_too_few_examples_fail_the_job_with_the_words_clients_know(workshop: Workshop, tmp_path: Path) -> None:
    job = await workshop.ended((await workshop.create(write_chat_file(tmp_path / "train.jsonl", 7))).id)
    assert job.error is not None
    assert job.error.code == "invalid_n_examples"
    assert "Training file has 7 example(s), but must have at least 10 examples" in job.error.message


async def test_two_jobs_at_once_wait_for_the_one_slot_in_turn(workshop: Workshop, rows: Path) -> None:
    first = await workshop.create(rows, num_epochs=10)
    second = await workshop.create(rows)
    ended = [await workshop.ended(job.id) for job in (first, second)]
    assert [job.status for job in ended] == ["succeeded", "succeeded"]
    models = {job.fine_tuned_model for job in ended}
    assert len(models) == 2


async def test_a_stranger_without_a_key_is_told_so(workshop: Workshop) -> None:
    stranger = AsyncOpenAI(base_url=str(workshop.client.base_url), api_key="sk-nobody")
    with pytest.raises(openai.AuthenticationError):
        await stranger.fine_tuning.jobs.list()
    await stranger.close()


async def test_ready_when_a_job_could_run_now(workshop: Workshop) -> None:
    url = str(workshop.client.base_url).removesuffix("/v1/")
    async with httpx2.AsyncClient(timeout=60) as http:

        async def is_ready() -> bool:
            return (await http.get(f"{url}/readyz")).status_code == 200

        await until(is_ready, within_s=60, what="a job could run")
