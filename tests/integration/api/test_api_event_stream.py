"""Following a job by server-sent events, through the real relay, broker and projector."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from openai.types import FileObject

from builders.jobs import JobStory, make_step
from integration.api.conftest import TINY, Api, run_api
from luthier_common.contract import events as f

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
FIRST = ["Created fine-tuning job", "Validating training file"]
ACCEPTED = ["Dataset 'file-training'", "Files validated"]


class Told(NamedTuple):
    """One server-sent event."""

    name: str
    id: str | None
    data: dict[str, Any]


@pytest.fixture(scope="module")
async def file(api: Api) -> FileObject:
    return await api.sdk().files.create(file=("train-stream.jsonl", LINE * 20), purpose="fine-tune")


async def _new_job(api: Api, file: FileObject) -> JobStory:
    job = await api.sdk().fine_tuning.jobs.create(model=TINY, training_file=file.id)
    return JobStory(api.db, job.id)


async def _follow(
    api: Api, job_id: str, *, after: str | None = None, key: str | None = None
) -> AsyncGenerator[Told, None]:
    """What the server tells, until it ends the stream; comments are left out."""
    headers = {"last-event-id": after} if after else {}
    url = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    async with api.http(key) as client, client.stream("GET", url, headers=headers, timeout=20) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "data" in fields:
                yield Told(fields["event"], fields.get("id"), json.loads(fields["data"]))
                fields = {}


async def _take(stream: AsyncIterator[Told], count: int) -> list[Told]:
    async with asyncio.timeout(20):
        return [await anext(stream) for _ in range(count)]


def _begins(told: list[Told], beginnings: list[str]) -> None:
    messages = [event.data["message"] for event in told]
    assert len(messages) == len(beginnings), messages
    assert all(message.startswith(begin) for message, begin in zip(messages, beginnings, strict=True)), messages
    assert all(event.name == "fine_tuning.job.event" and event.id == event.data["id"] for event in told)


async def test_a_life_is_told_as_it_happens_and_the_stream_ends_with_it(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    async with aclosing(_follow(api, story.id)) as stream:
        _begins(await _take(stream, 2), FIRST)
        await story.accepted()
        _begins(await _take(stream, 2), ACCEPTED)
        await story.placed()
        await story.started()
        await story.tell(make_step(1), make_step(2), attempt=1)
        _begins(await _take(stream, 4), ["Job placed", "Fine-tuning job started", "Step 1/6", "Step 2/6"])
        await api.sdk().fine_tuning.jobs.cancel(story.id)
        _begins(await _take(stream, 1), ["Fine-tuning job cancelled"])
        async with asyncio.timeout(10):
            rest = [told async for told in stream]
    assert [(told.name, told.data["status"]) for told in rest] == [("done", "cancelled")]
    listed = await api.sdk().fine_tuning.jobs.list_events(story.id, extra_query={"order": "asc"})
    async with aclosing(_follow(api, story.id)) as again:
        assert [told.id async for told in again] == [*(event.id for event in listed.data), None]


async def test_a_cut_stream_goes_on_after_the_last_event_seen(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    await story.accepted()
    seen: list[Told] = []
    for _ in range(4):
        async with aclosing(_follow(api, story.id, after=seen[-1].id if seen else None)) as stream:
            seen += await _take(stream, 1)
    _begins(seen, FIRST + ACCEPTED)
    await api.sdk().fine_tuning.jobs.cancel(story.id)
    async with aclosing(_follow(api, story.id, after=seen[-1].id)) as stream:
        async with asyncio.timeout(20):
            last = [told async for told in stream]
    assert [told.name for told in last] == ["fine_tuning.job.event", "done"]
    async with aclosing(_follow(api, story.id, after=last[0].id)) as stream:
        assert [told.name for told in await _take(stream, 1)] == ["done"]


async def test_what_lies_behind_a_gap_waits_until_it_is_filled(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    await story.accepted()
    async with asyncio.timeout(20):
        while await api.db["events"].count_documents({"thing": story.id}) < 3:
            await asyncio.sleep(0.05)
    hidden = await api.db["events"].find_one_and_delete({"_id": f"job/{story.id}/2"})
    assert hidden is not None
    async with aclosing(_follow(api, story.id)) as stream:
        _begins(await _take(stream, 2), FIRST)
        waiting = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        await api.db["events"].insert_one(hidden)
        async with asyncio.timeout(10):
            _begins([await waiting, *await _take(stream, 1)], ACCEPTED)


async def test_a_job_that_is_opened_again_is_followed_to_its_second_end(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    await api.sdk().fine_tuning.jobs.cancel(story.id)
    assert (await story.tell(f.JobRestarted(), op_id="restart")).applied
    async with aclosing(_follow(api, story.id)) as stream:
        _begins(await _take(stream, 4), [*FIRST, "Fine-tuning job cancelled", "Fine-tuning job restarted"])
        await story.accepted()
        _begins(await _take(stream, 2), ACCEPTED)
        await api.sdk().fine_tuning.jobs.cancel(story.id)
        async with asyncio.timeout(10):
            rest = [told async for told in stream]
    assert [told.name for told in rest] == ["fine_tuning.job.event", "done"]


async def test_another_tenant_follows_nothing(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    foreign = await api.new_key("fine-tuning:read", project="proj-elsewhere")
    async with api.http(foreign) as stranger, api.http() as own:
        url = f"/v1/fine_tuning/jobs/{story.id}/events/stream"
        refused = await stranger.get(url)
        missing = await own.get(url.replace(story.id, "ftjob-" + "0" * 24))
        cursor = await own.get(url, params={"after": "ftevent-0-000001.1"})
    assert (refused.status_code, missing.status_code) == (404, 404)
    assert refused.json()["error"]["code"] == missing.json()["error"]["code"] == "not_found"
    assert (cursor.status_code, cursor.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_a_revoked_key_stops_hearing(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    key = await api.new_key("fine-tuning:read")
    async with aclosing(_follow(api, story.id, key=key)) as stream:
        await _take(stream, 2)
        await api.db["api_keys"].update_one({"_id": key.split("-")[2]}, {"$set": {"revoked": True}})
        async with asyncio.timeout(15):
            assert [told async for told in stream] == []


async def test_a_revoked_key_stops_hearing_of_a_busy_job_too(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    await story.accepted()
    await story.placed()
    await story.started()
    key = await api.new_key("fine-tuning:read")
    steps = 0

    async def keep_busy() -> None:
        nonlocal steps
        while True:
            steps += 1
            await story.tell(make_step(steps, total_steps=10_000), attempt=1)
            await asyncio.sleep(0.2)

    busy = asyncio.create_task(keep_busy())
    try:
        async with aclosing(_follow(api, story.id, key=key)) as stream:
            await _take(stream, 6)
            await api.db["api_keys"].update_one({"_id": key.split("-")[2]}, {"$set": {"revoked": True}})
            async with asyncio.timeout(15):
                heard = [told async for told in stream]
    finally:
        busy.cancel()
    assert all(told.name == "fine_tuning.job.event" for told in heard)


async def test_a_key_follows_only_so_many_jobs_at_a_time(api: Api, file: FileObject) -> None:
    story = await _new_job(api, file)
    key = await api.new_key("fine-tuning:read")
    url = f"/v1/fine_tuning/jobs/{story.id}/events/stream"
    async with api.http(key) as client:
        opened = [client.stream("GET", url) for _ in range(4)]
        answers = [await stream.__aenter__() for stream in opened]
        assert [answer.status_code for answer in answers] == [200] * 3 + [429]
        assert json.loads(await answers[-1].aread())["error"]["code"] == "too_many_streams"
        for stream in opened:
            await stream.__aexit__(None, None, None)
        async with asyncio.timeout(10):
            while await _status(client, url) == 429:
                await asyncio.sleep(0.1)


async def _status(client: httpx2.AsyncClient, url: str) -> int:
    async with client.stream("GET", url) as answer:
        return answer.status_code


async def test_an_api_that_stops_ends_its_streams_at_once(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """A stream that went on would use up the grace, which is longer than `run_api` waits for the process."""
    env = {"LUTHIER_STOP_GRACE_S": "60"}
    async with run_api(mongo_url, kafka_url, tmp_path, free_port(), "test_stream_stop", env) as api:
        file = await api.sdk().files.create(file=("train.jsonl", LINE * 20), purpose="fine-tune")
        stream = _follow(api, (await _new_job(api, file)).id)
        await _take(stream, 2)
    async with aclosing(stream):
        assert [told async for told in stream] == []
