"""An installation that was lost comes back from its backup: every file, job, event, key and model, and the run."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, PermissionDeniedError

from builders.bases import make_tiny_base, write_chat_file
from builders.kept import all_kept, constant, differing
from builders.stub_trainer import set_pace
from builders.waiting import until
from builders.workshop import TINY, Workshop, stack_settings, wait_ready, workshop_of
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.stream import Part, Reader
from luthier_stack.stack import Stack

JOBS = TOPICS[Kind.JOB]
KEPT_APART = ("pepper", "admin-key")
CRAWL = 0.2
"""Steps a second: such a run is still under way when the backup has been made."""


async def admin(stack: Stack, *arguments: str) -> str:
    """Run an operator's command as an operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "luthier_api.admin", *arguments),
        env=stack.env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    return told.decode()


async def sources(stack: Stack) -> AsyncIterator[tuple[str, str]]:
    """The thing and the source of every fact on the topic of jobs."""
    reader = Reader(stack.env["LUTHIER_KAFKA_URL"])
    await reader.seek({Part(JOBS.name, number): 0 for number in range(JOBS.num_partitions)})
    while batches := (await reader.read(wait_ms=1000))[0]:
        for record in (record for records in batches.values() for record in records):
            headers = dict(record.headers)
            yield headers["ce_subject"].decode(), headers["ce_source"].decode()
    await reader.close()


async def a_key_of_a_project(stack: Stack) -> str:
    """Of a new project; it may see jobs there, and no more."""
    headers = {"authorization": f"Bearer {stack.admin_key}"}
    async with httpx.AsyncClient(base_url=f"{stack.api_url}/v1/organization", headers=headers) as http:
        project = (await http.post("/projects", json={"name": "Violins"})).json()["id"]
        asked = {"name": "reader", "scopes": ["fine-tuning:read"]}
        answer = await http.post(f"/projects/{project}/api_keys", json=asked)
    return str(answer.json()["value"])


async def is_crawling(workshop: Workshop, job_id: str) -> bool:
    job = await workshop.doc(job_id)
    return job["phase"] == "training" and job.get("checkpoint") is not None


@pytest.mark.timeout(600)
async def test_all_is_there_after_dump_wipe_and_restore(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / TINY, name=TINY)
    rows = write_chat_file(tmp_path / "train.jsonl", 24)
    home, backup, new_home = tmp_path / "home", tmp_path / "backup", tmp_path / "new"
    async with Stack(stack_settings(home, base, stub_child=True)) as stack:
        await wait_ready(stack)
        async with workshop_of(stack) as workshop:
            done = await workshop.ended((await workshop.create(rows)).id)
            assert done.fine_tuned_model is not None
            events, answer = await workshop.events(done.id), await workshop.ask(done.fine_tuned_model)
            set_pace(home, steps_per_s=2)  # its end is not to come before it is slowed down
            running = (await workshop.create(rows, num_epochs=4, suffix="running")).id
            await until(lambda: is_crawling(workshop, running), within_s=60, every_s=0.005, what="a checkpoint")
            set_pace(home, steps_per_s=CRAWL)
            reader = await a_key_of_a_project(stack)
            before = await all_kept(stack)
            assert "objects of" in await admin(stack, "backup", "create", str(backup))
            wanted = constant(before, await all_kept(stack))
            assert {name for name, _ in wanted} >= {
                "jobs",
                "files",
                "models",
                "events",
                "api_keys",
                "audit_log",
                "bytes",
            }
            assert await workshop.phase(running) == "training"
        key = stack.admin_key
    new_home.mkdir()
    for name in KEPT_APART:
        shutil.copy2(home / name, new_home / name)
    shutil.rmtree(home)

    settings = stack_settings(new_home, base, stub_child=True)
    async with Stack(settings.model_copy(update={"services": ()})) as stack:
        assert "restored as incarnation" in await admin(stack, "backup", "restore", str(backup))
        assert differing(wanted, await all_kept(stack)) == []
    async with Stack(settings) as stack:
        await wait_ready(stack)
        assert stack.admin_key == key
        async with AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=reader) as client:
            assert (await client.fine_tuning.jobs.list()).data == []
            with pytest.raises(PermissionDeniedError):
                await client.files.list()
        async with workshop_of(stack) as workshop:
            assert await workshop.client.fine_tuning.jobs.retrieve(done.id) == done
            assert await workshop.events(done.id) == events
            files = [file async for file in workshop.client.files.list(purpose="fine-tune")]
            assert done.training_file in [file.id for file in files]
            assert (await workshop.client.files.content(done.training_file)).content == rows.read_bytes()
            assert await workshop.ask(done.fine_tuned_model) == answer
            went_on = await workshop.ended(running)
            assert went_on.status == "succeeded", went_on.error
            doc = await workshop.doc(running)
            assert doc["attempt"] == 2
            said = [event.message for event in await workshop.events(running)]
            assert any("going on from step" in line or "resumed from step" in line for line in said), said
            fresh = await workshop.ended((await workshop.create(rows, seed=8)).id)
            assert fresh.status == "succeeded", fresh.error
            for job_id in (done.id, running, fresh.id):
                await workshop.assert_told_exactly(job_id)
            told = [source async for thing, source in sources(stack) if thing in (running, fresh.id)]
            assert told
            assert {source.rpartition("/")[0] for source in told} == {"luthier/local"}
            assert min(int(source.rpartition("/")[2]) for source in told) > 1
            assert "chains are as they were written" in await admin(stack, "audit", "verify")
