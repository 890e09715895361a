"""The event list of a job, through the real relay, broker and projector."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from builders.jobs import JobStory, make_blob, make_step
from integration.api.conftest import TINY, Api
from luthier_common.contract import events as f

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'


@pytest.fixture(scope="session")
async def file(api: Api) -> FileObject:
    return await api.sdk().files.create(file=("train-events.jsonl", LINE * 20), purpose="fine-tune")


async def _until_listed(api: Api, job_id: str, message: str, **options: Any) -> list[FineTuningJobEvent]:
    """All events, newest first, once the list holds one that begins so."""
    async with asyncio.timeout(30):
        while True:
            pages = api.sdk().fine_tuning.jobs.list_events(job_id, **options)
            events = [event async for event in pages]
            if any(event.message.startswith(message) for event in events):
                return events
            await asyncio.sleep(0.1)


async def test_a_whole_life_is_told_in_order_and_each_line_is_a_cursor(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    story = JobStory(api.db, job.id)
    await story.in_training()
    await story.tell(make_step(1), make_step(2), attempt=1)
    await story.tell(
        f.ValidationCompleted(step=2, total_steps=6, full_valid_loss=1.5, full_valid_mean_token_accuracy=0.5), attempt=1
    )
    await story.tell(f.CheckpointSaved(step=2, attempt=1, blob=make_blob(), metrics={"train_loss": 1.0}), attempt=1)
    await story.tell(f.RunLost(reason="lease_expired", last_step=2), attempt=1, op_id="1/RunLost")
    await sdk.fine_tuning.jobs.cancel(job.id)
    events = await _until_listed(api, job.id, "Fine-tuning job cancelled")
    assert [event.message for event in reversed(events)] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {file.id}",
        "Dataset 'file-training' processed successfully",
        "Files validated, moving job to queued state",
        "Job placed on node-1 as attempt 1",
        "Fine-tuning job started",
        "Step 1/6: training loss=2.0000",
        "Step 2/6: training loss=1.0000",
        "Step 2/6: full validation loss=1.5000",
        "Checkpoint created at step 2",
        "Attempt 1 was lost (lease_expired); the job will be tried again",
        "Fine-tuning job cancelled",
    ]
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    by_message = {event.message: event for event in events}
    metrics = by_message["Step 2/6: training loss=1.0000"]
    assert (metrics.type, metrics.level) == ("metrics", "info")
    assert metrics.data is not None
    assert {"step", "total_steps", "train_loss", "train_mean_token_accuracy"} <= set(metrics.data)
    assert by_message["Attempt 1 was lost (lease_expired); the job will be tried again"].level == "warn"
    for size in (1, 2, 5):
        assert await _until_listed(api, job.id, "Created", limit=size) == events
    for number, event in enumerate(events[:-1]):
        page = await sdk.fine_tuning.jobs.list_events(job.id, after=event.id, limit=1)
        assert [found.id for found in page.data] == [events[number + 1].id]
        assert page.has_more == (number + 2 < len(events))

    checkpoints = await sdk.fine_tuning.jobs.checkpoints.list(job.id)
    assert [(point.step_number, point.fine_tuning_job_id) for point in checkpoints.data] == [(2, job.id)]
    point = checkpoints.data[0]
    assert point.fine_tuned_model_checkpoint == f"ft:{TINY}:default::{job.id[-12:]}:ckpt-step-2"
    assert (point.metrics.step, point.metrics.train_loss, point.metrics.valid_loss) == (2, 1.0, None)
    assert (await sdk.fine_tuning.jobs.checkpoints.list(job.id, after=point.id)).data == []


async def test_what_lies_behind_a_gap_is_not_shown(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    async with asyncio.timeout(30):  # nobody has listed the events before the gap is there
        await JobStory(api.db, job.id).accepted()
        while await api.db["events"].count_documents({"thing": job.id}) < 3:
            await asyncio.sleep(0.05)
    hidden = await api.db["events"].find_one_and_delete({"_id": f"job/{job.id}/2"})
    assert hidden is not None
    for order, messages in (("desc", ["Validat", "Created"]), ("asc", ["Created", "Validat"])):
        shown = await sdk.fine_tuning.jobs.list_events(job.id, extra_query={"order": order})
        assert [event.message[:7] for event in shown.data] == messages
        assert not shown.has_more
    await api.db["events"].insert_one(hidden)
    assert len((await sdk.fine_tuning.jobs.list_events(job.id)).data) == 4


async def test_both_orders_tell_the_same(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    story = await JobStory(api.db, job.id).in_training()
    await story.tell(*(make_step(step) for step in range(1, 6)), attempt=1)
    for step in (2, 4):
        await story.tell(
            f.CheckpointSaved(step=step, attempt=1, blob=make_blob(), metrics={"train_loss": 1.0}), attempt=1
        )
    newest_first = await _until_listed(api, job.id, "Checkpoint created at step 4")
    for order in ("asc", "ascending"):
        for size in (1, 3, 100):
            pages = sdk.fine_tuning.jobs.list_events(job.id, limit=size, extra_query={"order": order})
            assert [event async for event in pages] == newest_first[::-1]
    steps = {
        order: [point.step_number async for point in _checkpoints(api, job.id, order)] for order in ("desc", "asc")
    }
    assert steps == {"desc": [4, 2], "asc": [2, 4]}


def _checkpoints(api: Api, job_id: str, order: str) -> AsyncIterator[FineTuningJobCheckpoint]:
    pages = api.sdk().fine_tuning.jobs.checkpoints.list(job_id, limit=1, extra_query={"order": order})
    return aiter(pages)


async def test_a_cursor_of_another_job_is_refused(api: Api, file: FileObject) -> None:
    sdk = api.sdk()
    jobs = [await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id) for _ in range(2)]
    events = await _until_listed(api, jobs[0].id, "Created")
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.fine_tuning.jobs.list_events(jobs[1].id, after=events[0].id)
    assert (caught.value.code, caught.value.param) == ("invalid_cursor", "after")
