"""Load as the platform promises to bear it, for SECONDS (60): `SECONDS=600` for the full measure.

First 100 creations, by 64 projects, and 300 reads a second through the public API, the jobs left waiting: every
answer must be a 200, and p99 at most 250 ms. The reads are a job, its event list, and a project's list of jobs. Then,
for two minutes at most, 200 step facts a second of 200 running jobs, stated through the journal by a process in the
trainer's place: from a commit to its line in the job's event list p99 at most 1 s, and when all is quiet no fact may
be missing. `commit_to_consumer` measures the way to another room's handler.

The API runs alone, and jobs stay unchecked. With `ROOMS=registry,api,file-validator,scheduler` they are checked and
queued while the requests come, as fast as what is left of the machine allows; the second part is left out.
"""

import asyncio
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import uvloop
from _bench import (
    READY_S,
    SEED,
    TINY,
    database_of,
    elsewhere,
    mongo_url_of,
    report,
    report_spread,
    run,
    stack_of,
    tiny_base,
)
from _load import Client, Load, Work, open_loop
from create_job import STEADY_RATE, Place, create_steadily, make_places
from pydantic import SecretStr

from builders.jobs import JobStory, make_step
from builders.waiting import until
from luthier_common.kit.mongo import Database, open_mongo
from luthier_stack.stack import Stack

SECONDS = float(os.environ.get("SECONDS", "60"))
NUM_PROJECTS = 64
MANY_JOBS = {"LUTHIER_MAX_QUEUED_JOBS": str(10**6)}
"""By a project's usual limit it took 600 projects, each seen so seldom that nothing of it is remembered."""
FACTS_S = min(SECONDS, 120.0)
ROOMS = tuple(os.environ.get("ROOMS", "api").split(","))
READ_RATE = 300.0
READERS = 32
BOTH_THERE_S = 8.0
"""Until then the processes of the load have started: what that costs the machine is no part of the measure."""
FACT_RATE = 200.0
NUM_RUNNING = 200
LOOKED_AT_EVERY = 20
LOOK_EVERY_S = 0.01
GIVE_UP_S = 30.0


class Told(NamedTuple):
    """What stood in the event list how long after its commit, and how many facts each job has in all."""

    visible_ms: list[float]
    num_facts: dict[str, int]
    seconds: float


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_base(Path(folder)) if "registry" in ROOMS else None
        async with stack_of(ROOMS, base=base, env=MANY_JOBS) as stack, database_of(stack) as db:
            await _bring_base(stack, db)
            await _bear_requests(stack, db)
            if len(ROOMS) > 1:
                report("load.queued", await db["jobs"].count_documents({"phase": "waiting"}), "1")
            else:
                await _bear_facts(stack, db)


async def _bring_base(stack: Stack, db: Database) -> None:
    """The registry's own, or an entry that is enough for creations."""
    if "registry" in ROOMS:
        await stack.wait_ready("registry", READY_S)
    else:
        await db["bases"].insert_one({"_id": TINY, "name": TINY, "digest": "0", "aliases": [], "context_length": 256})


async def _bear_requests(stack: Stack, db: Database) -> None:
    places = await make_places(stack, db, 1 + NUM_PROJECTS)
    await elsewhere(create_steadily, stack.port, places[:1], 0.9)
    job_ids = [job["_id"] async for job in db["jobs"].find({}, {"_id": 1})]
    begins_at = time.time() + BOTH_THERE_S
    created, read = await asyncio.gather(
        elsewhere(create_steadily, stack.port, places[1:], SECONDS, jobs_each=10**4, begins_at=begins_at),
        elsewhere(read_steadily, stack.port, places[0], job_ids, SECONDS, begins_at),
    )
    report("load.creates", created.rate, "1/s", STEADY_RATE)
    report_spread("load.create", created.latencies_ms)
    report("load.reads", read.rate, "1/s", READ_RATE)
    report_spread("load.read", read.latencies_ms)


async def _bear_facts(stack: Stack, db: Database) -> None:
    began_at = time.perf_counter()
    await until(lambda: _all_told(db), within_s=SECONDS + GIVE_UP_S, every_s=0.2, what="empty outboxes")
    report("load.told_after", time.perf_counter() - began_at, "s")
    told = await elsewhere(tell_steadily, mongo_url_of(stack), stack.port, SecretStr(stack.admin_key), FACTS_S)
    await until(lambda: _all_told(db), within_s=GIVE_UP_S, every_s=0.2, what="empty outboxes")
    num_lost = 0
    for job_id, num_facts in told.num_facts.items():
        rows = db["events"].find({"kind": "job", "thing": job_id}, {"seq": 1}).sort("seq", 1)
        seqs = [row["seq"] async for row in rows]
        num_lost += num_facts - len(seqs)
        if seqs != list(range(1, num_facts + 1)):
            raise SystemExit(f"the events of {job_id} are {seqs}, of {num_facts} facts")
    report("load.facts", int(FACT_RATE * FACTS_S) / told.seconds, "1/s", FACT_RATE)
    report("load.facts_lost", num_lost, "1")
    report_spread("load.visible", told.visible_ms)


async def _all_told(db: Database) -> bool:
    return await db["jobs"].find_one({"pend": True}, {"_id": 1}) is None


def read_steadily(port: int, place: Place, job_ids: list[str], seconds: float, begins_at: float) -> Load:
    """In a process of its own: 300 reads a second, whether or not the last one was answered."""

    async def go() -> Load:
        key = place.key.get_secret_value()
        clients = [await Client.connect(port, key) for _ in range(READERS)]
        draws = [random.Random(SEED + number) for number in range(READERS)]
        workers = [_reading(client, job_ids, draw) for client, draw in zip(clients, draws, strict=True)]
        await asyncio.sleep(begins_at - time.time())
        return await open_loop(workers, READ_RATE, seconds)

    return uvloop.run(go())


def _reading(client: Client, job_ids: list[str], draw: random.Random) -> Work:
    async def work() -> None:
        job = f"/v1/fine_tuning/jobs/{draw.choice(job_ids)}"
        await client.get(draw.choice((job, job, f"{job}/events", "/v1/fine_tuning/jobs?limit=20")))

    return work


def tell_steadily(url: SecretStr, port: int, key: SecretStr, seconds: float) -> Told:
    """In a process of its own: jobs that run, each of which states a step a second."""

    async def go() -> Told:
        async with open_mongo(url.get_secret_value(), "luthier") as db:
            stories = [await (await JobStory.created(db)).in_training() for _ in range(NUM_RUNNING)]
            began_at = time.perf_counter()
            visible_ms = await _tell(stories, port, key.get_secret_value(), seconds)
            lasted_s = time.perf_counter() - began_at
            return Told(visible_ms, {story.id: int((await story.doc())["seq"]) for story in stories}, lasted_s)

    return asyncio.run(go())


async def _tell(stories: list[JobStory], port: int, key: str, seconds: float) -> list[float]:
    clients: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(READERS):
        clients.put_nowait(await Client.connect(port, key))
    visible_ms: list[float] = []
    turns = [asyncio.Lock() for _ in stories]

    async def tell(number: int) -> None:
        story, step = stories[number % len(stories)], 1 + number // len(stories)
        async with turns[number % len(stories)]:
            told = await story.tell(make_step(step, total_steps=10**6), attempt=1)
        if not told.applied:
            raise SystemExit(f"step {step} of {story.id} was not stated: {told.outcome}")
        committed_at = time.perf_counter()
        if number % LOOKED_AT_EVERY == 0:
            client = await clients.get()
            await _shown(client, story.id, step)
            visible_ms.append((time.perf_counter() - committed_at) * 1000)
            clients.put_nowait(client)

    began_at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(FACT_RATE * seconds)):
            await asyncio.sleep(max(0.0, began_at + number / FACT_RATE - time.perf_counter()))
            group.create_task(tell(number))
    return visible_ms


async def _shown(client: Client, job_id: str, step: int) -> None:
    """Ask until the newest line of the event list is of this step or a later one."""
    deadline = time.perf_counter() + GIVE_UP_S
    while True:
        (newest,) = json.loads(await client.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=1"))["data"]
        if (newest.get("data") or {}).get("step", 0) >= step:
            return
        if time.perf_counter() > deadline:
            raise SystemExit(f"step {step} of {job_id} was never listed")
        await asyncio.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    run(measure)
