"""Create, retrieve, list and events with 100,000 jobs and 5,000,000 events stored, beside the bare driver's same reads.

One API process against one driver process over the same mongod and the same documents; the two take turns. Retrieve and
list have the gate 0.30 of the bare rate, the aim 0.45; create has 0.30 and 0.50. Then page 1 against page 1,000, by one
client: the cost must be the same. Everything is stored before, in bulk; `LUTHIER_BENCH_SCALE=0.01` stores a hundredth.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from _bench import SEED, TINY, database_of, elsewhere, mongo_url_of, percentile, report, report_spread, run, stack_of
from _load import Client, Load, Work, closed_loop
from create_job import create_fast, insert_fast, make_places
from pydantic import SecretStr

from builders.jobs import JobStory, make_step
from luthier_api.first_key import read_pepper
from luthier_api.keys import KeyRing
from luthier_api.store.events import FIELDS as EVENT_FIELDS
from luthier_api.store.repository import JOB_FIELDS
from luthier_common.contract.events import JobCancelled
from luthier_common.contract.ids import JOB_PREFIX, core_of
from luthier_common.kit.mongo import Database, Doc, open_mongo

SCALE = float(os.environ.get("LUTHIER_BENCH_SCALE", "1"))
NUM_JOBS = int(100_000 * SCALE)
EVENTS_A_JOB = 50
LONG_JOB_EVENTS = 20_480
PAGE = 20
FAR_EVENTS = 1000
FAR_JOBS = min(1000, NUM_JOBS // PAGE)
BULK = 2000
CLIENTS = 50
ROUNDS = 3
ROUND_S = 4.0
PAGES_ASKED = 300
FIRST_MS = 1_700_000_000_000
PROJECT = "proj-lists"
OWNER = {"org": "org-default", "project": PROJECT}


class Stored(NamedTuple):
    """What is stored, by number: job 0 is the long one, the highest number is the newest job."""

    key: SecretStr
    job: Doc
    event: Doc


class Told(NamedTuple):
    """How long each of two pages took, in milliseconds."""

    first_ms: list[float]
    far_ms: list[float]


Reading = Callable[[random.Random], Awaitable[object]]


def job_id(number: int) -> str:
    return f"{JOB_PREFIX}{FIRST_MS + number:012x}{number:012x}"


async def measure() -> None:
    async with stack_of(["api"]) as stack, database_of(stack) as db:
        await db["bases"].insert_one({"_id": TINY, "name": TINY, "digest": "0", "aliases": [], "context_length": 256})
        places = await make_places(stack, db)
        key = await KeyRing(db, read_pepper(stack.home), cache_s=1).create(
            "bench", frozenset({"admin"}), project=PROJECT
        )
        stored = Stored(SecretStr(key), *await _samples(db))
        await _store(db, mongo_url_of(stack), stored)
        for name, far, pages in (("jobs", FAR_JOBS, job_pages()), ("events", FAR_EVENTS, event_pages())):
            told = await elsewhere(ask_pages, stack.port, stored.key, *pages)
            report_spread(f"lists.{name}.page_{far}", told.far_ms, "ms", told.first_ms)
        for name in READINGS:
            await _take_turns(name, stack.port, mongo_url_of(stack), stored)
        ours, bare = [], []
        for number in range(ROUNDS):
            ours.append(await elsewhere(create_fast, stack.port, places[number::ROUNDS]))
            bare.append(await elsewhere(insert_fast, mongo_url_of(stack), await _created(db)))
        _report("create", ours, bare)


async def _take_turns(name: str, port: int, url: SecretStr, stored: Stored) -> None:
    ours: list[Load] = []
    bare: list[Load] = []
    for number in range(ROUNDS):
        ours.append(await elsewhere(ask_api, port, stored.key, name, number))
        bare.append(await elsewhere(ask_driver, url, name, number))
    _report(name, ours, bare)


def _report(name: str, ours: list[Load], bare: list[Load]) -> None:
    rates = [percentile([load.rate for load in loads], 50) for loads in (ours, bare)]
    report(f"lists.{name}.rate", rates[0], "1/s", rates[1])
    latencies = [[latency for load in loads for latency in load.latencies_ms] for loads in (ours, bare)]
    report_spread(f"lists.{name}.latency", latencies[0], "ms", latencies[1])


async def _samples(db: Database) -> tuple[Doc, Doc]:
    """A job that has ended and a row of one of its steps, as the API and its projector have made them."""
    story = await (await JobStory.created(db, metadata=[{"k": "purpose", "v": "bench"}])).in_training()
    await story.tell(make_step(1), attempt=1)
    await story.tell(JobCancelled())
    async with asyncio.timeout(30):
        while (job := await story.doc())["outbox"]:
            await asyncio.sleep(0.1)
    event = await db["events"].find_one({"thing": story.id, "type": "StepCompleted"})
    assert event is not None
    return job | OWNER, event | OWNER


async def _created(db: Database) -> Doc:
    """A job as a create leaves it, with its event still inside."""
    sample = await db["jobs"].find_one({"phase": "checking"})
    assert sample is not None
    return sample | {"outbox": [row["body"] for row in await db["events"].find({"seq": 1}).limit(1).to_list(1)]}


async def _store(db: Database, url: SecretStr, stored: Stored) -> None:
    """The jobs, one after the other; their events are made by the database itself, which is much faster."""
    began_at = time.perf_counter()
    async with open_mongo(url.get_secret_value(), "luthier", timeout_s=600) as patient:
        for begin in range(0, NUM_JOBS, BULK):
            numbers = range(begin, min(NUM_JOBS, begin + BULK))
            await patient["jobs"].insert_many([stored.job | {"_id": job_id(n)} for n in numbers], ordered=False)
            await _store_events(patient, stored.event, max(1, begin), numbers[-1] + 1, EVENTS_A_JOB)
        await _store_events(patient, stored.event, 0, 1, LONG_JOB_EVENTS)
    report("lists.store", time.perf_counter() - began_at, "s")
    report("lists.jobs_stored", await db["jobs"].estimated_document_count(), "1")
    report("lists.events_stored", await db["events"].estimated_document_count(), "1")
    report("lists.on_disk", (await db.command("dbStats", scale=1024**2))["totalSize"], "MiB")


async def _store_events(db: Database, sample: Doc, first: int, end: int, count: int) -> None:
    """So many events for each of these jobs, all like the sample."""
    body = sample["body"]
    step = {"$mergeObjects": [{"$literal": body["data"]}, {"step": "$seq", "total_steps": LONG_JOB_EVENTS}]}
    told = {"$mergeObjects": [{"$literal": body}, {"thing": "$_id", "seq": "$seq", "data": step}]}
    place = {"$concat": ["job/", "$_id", "/", {"$toString": "$seq"}]}
    row = {"$mergeObjects": [{"$literal": sample}, {"_id": place, "thing": "$_id", "seq": "$seq", "body": told}]}
    made: list[Doc] = [
        {"$match": {"_id": {"$gte": job_id(first), "$lt": job_id(end)}}},
        {"$project": {"seq": {"$range": [1, count + 1]}}},
        {"$unwind": "$seq"},
        {"$replaceWith": row},
        {"$merge": {"into": "events", "whenMatched": "fail"}},
    ]
    await db["jobs"].aggregate(made).to_list(None)


# What is read: a path of the API, and the same reads by the driver.


def _some_job(draw: random.Random) -> str:
    return job_id(draw.randrange(1, NUM_JOBS))


def _path(name: str, draw: random.Random) -> str:
    if name == "list":
        return f"/v1/fine_tuning/jobs?limit={PAGE}&after={_some_job(draw)}"
    path = f"/v1/fine_tuning/jobs/{_some_job(draw)}"
    return path if name == "retrieve" else f"{path}/events?limit={PAGE}"


async def _retrieve(db: Database, draw: random.Random) -> object:
    return await db["jobs"].find_one({"_id": _some_job(draw), **OWNER}, JOB_FIELDS)


async def _list(db: Database, draw: random.Random) -> object:
    rows = db["jobs"].find({**OWNER, "_id": {"$lt": _some_job(draw)}}, JOB_FIELDS)
    return await rows.sort("_id", -1).limit(PAGE + 1).to_list(PAGE + 1)


async def _events(db: Database, draw: random.Random) -> object:
    job = await db["jobs"].find_one({"_id": _some_job(draw), **OWNER}, {"_id": 1})
    assert job is not None
    rows = db["events"].find({"kind": "job", "thing": job["_id"], **OWNER}, EVENT_FIELDS)
    return await rows.sort("seq", -1).limit(PAGE + 2).to_list(PAGE + 2)


READINGS: dict[str, Callable[[Database, random.Random], Awaitable[object]]] = {
    "retrieve": _retrieve,
    "list": _list,
    "events": _events,
}


def ask_api(port: int, key: SecretStr, name: str, number: int) -> Load:
    """In a process of its own: 50 connections, each asking one thing after the other."""

    async def go() -> Load:
        clients = [await Client.connect(port, key.get_secret_value()) for _ in range(CLIENTS)]
        workers = [_asking(client, name, SEED + number + n) for n, client in enumerate(clients)]
        return await closed_loop(workers, ROUND_S)

    return asyncio.run(go())


def _asking(client: Client, name: str, seed: int) -> Work:
    draw = random.Random(seed)

    async def work() -> None:
        await client.get(_path(name, draw))

    return work


def ask_driver(url: SecretStr, name: str, number: int) -> Load:
    """In a process of its own: the same reads by 50 coroutines, and nothing else."""

    async def go() -> Load:
        async with open_mongo(url.get_secret_value(), "luthier") as db:
            return await closed_loop([_reading(db, name, SEED + number + n) for n in range(CLIENTS)], ROUND_S)

    return asyncio.run(go())


def _reading(db: Database, name: str, seed: int) -> Work:
    draw, read = random.Random(seed), READINGS[name]

    async def work() -> None:
        assert await read(db, draw)

    return work


def job_pages() -> tuple[str, str]:
    """The first page of the job list, and the one that begins where a reader of all pages before it has come."""
    first = f"/v1/fine_tuning/jobs?limit={PAGE}"
    return first, f"{first}&after={job_id(NUM_JOBS - (FAR_JOBS - 1) * PAGE)}"


def event_pages() -> tuple[str, str]:
    first = f"/v1/fine_tuning/jobs/{job_id(0)}/events?limit={PAGE}"
    seen = LONG_JOB_EVENTS + 1 - (FAR_EVENTS - 1) * PAGE
    return first, f"{first}&after=ftevent-{core_of(job_id(0))}-{seen:06d}.1"


def ask_pages(port: int, key: SecretStr, first: str, far: str) -> Told:
    """In a process of its own: the two pages in turn, by one client."""

    async def go() -> Told:
        client = await Client.connect(port, key.get_secret_value())
        told = Told([], [])
        for number in range(PAGES_ASKED):
            for path, times_ms in zip((first, far), told, strict=True):
                began_at = time.perf_counter()
                page = json.loads(await client.get(path))
                assert len(page["data"]) == PAGE, path
                if number >= PAGES_ASKED // 10:
                    times_ms.append((time.perf_counter() - began_at) * 1000)
        return told

    return asyncio.run(go())


if __name__ == "__main__":
    run(measure)
