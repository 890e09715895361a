"""`POST /v1/fine_tuning/jobs`, durable, beside the bare driver doing the same database work.

That work is: look up the file and reserve the request, insert the job with its embedded event, and one row of the audit
log; all but the insert in one call for concurrent requests, as the API does it. (That the file's bytes are in use is
noted once a minute.) The single insert stands beside it as well.
16 clients each, taking turns; the gate is 0.30 of the bare rate, the aim 0.50. Then 100 a second, whose p99 must stay
below 50 ms. The API process publishes and projects all the while, as it always does. A project may have 100 jobs
waiting, so the clients work for many projects.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop
from _bench import SEED, TINY, database_of, elsewhere, mongo_url_of, percentile, report, report_spread, run, stack_of
from _load import Client, Load, OutOfWorkError, Work, closed_loop, open_loop
from openai import AsyncOpenAI
from pydantic import SecretStr

from builders.bases import write_chat_file
from luthier_api.first_key import read_pepper
from luthier_api.keys import KeyRing
from luthier_api.store.repository import FILE_FIELDS
from luthier_common.kit.mongo import Collection, Database, Doc, hasty, make_missing, open_mongo
from luthier_common.kit.together import Together
from luthier_stack.stack import Stack

CLIENTS = 16
STEADY_CLIENTS = 64
"""So many that a creation is sent when it is due: the server's time is to be seen, not the wait for a client."""
NUM_PROJECTS = 96
JOBS_A_PROJECT = 90
ROUNDS = 3
ROUND_S = 4.0
STEADY_RATE = 100.0
STEADY_S = 6.0


class Place(NamedTuple):
    """Where jobs can be created: a project's key and its file."""

    key: SecretStr
    file_id: str


async def measure() -> None:
    async with stack_of(["api"]) as stack, database_of(stack) as db:
        await db["bases"].insert_one({"_id": TINY, "name": TINY, "digest": "0", "aliases": [], "context_length": 256})
        places = await make_places(stack, db)
        steady, rest = places[: NUM_PROJECTS // 8], places[NUM_PROJECTS // 8 :]
        await elsewhere(create_steadily, stack.port, steady[:2], 1.0)
        sample = await db["jobs"].find_one({})
        assert sample is not None
        sample |= {"outbox": [row["body"] for row in await db["events"].find({}).limit(1).to_list(1)]}
        ours: list[Load] = []
        bare: list[Load] = []
        single: list[Load] = []
        for number in range(ROUNDS):
            ours.append(await elsewhere(create_fast, stack.port, rest[number::ROUNDS]))
            bare.append(await elsewhere(work_fast, mongo_url_of(stack), sample))
            single.append(await elsewhere(insert_fast, mongo_url_of(stack), sample))
        rates = [percentile([load.rate for load in loads], 50) for loads in (ours, bare, single)]
        report("create_job.rate", rates[0], "1/s", rates[1])
        report("create_job.rate_beside_one_insert", rates[0], "1/s", rates[2])
        latencies = [[latency for load in loads for latency in load.latencies_ms] for loads in (ours, bare)]
        report_spread("create_job.latency", latencies[0], "ms", latencies[1])
        at_100 = await elsewhere(create_steadily, stack.port, steady[2:], STEADY_S)
        report_spread("create_job.latency_at_100_per_s", at_100.latencies_ms)


async def make_places(stack: Stack, db: Database, number: int = NUM_PROJECTS) -> list[Place]:
    """One key and one file for each of many projects."""
    await Client.connect(stack.port)
    ring = KeyRing(db, read_pepper(stack.home), cache_s=1)
    rows = write_chat_file(stack.home / "rows.jsonl", 12)
    return [await _make_place(stack, ring, count, rows) for count in range(number)]


async def _make_place(stack: Stack, ring: KeyRing, number: int, rows: Path) -> Place:
    key = await ring.create("bench", frozenset({"admin"}), project=f"proj-bench-{number}")
    async with AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=key) as client:
        file = await client.files.create(file=rows, purpose="fine-tune")
    return Place(SecretStr(key), file.id)


def create_fast(port: int, places: list[Place]) -> Load:
    """In a process of its own: 16 clients, each creating one job after the other."""

    async def go() -> Load:
        return await closed_loop(await _creators(port, places), ROUND_S)

    return uvloop.run(go())


def create_steadily(
    port: int, places: list[Place], seconds: float, jobs_each: int = JOBS_A_PROJECT, begins_at: float = 0.0
) -> Load:
    """In a process of its own: 100 creations a second, whether or not the last one was answered.

    `begins_at` is a time of the clock (s), for loads that are to begin together.
    """

    async def go() -> Load:
        workers = await _creators(port, places, jobs_each, STEADY_CLIENTS)
        await asyncio.sleep(begins_at - time.time())
        return await open_loop(workers, STEADY_RATE, seconds)

    return uvloop.run(go())


async def _creators(
    port: int, places: list[Place], jobs_each: int = JOBS_A_PROJECT, num_clients: int = CLIENTS
) -> list[Work]:
    """Clients that share the places' room for waiting jobs; seeds make every body another one."""
    orders = itertools.chain.from_iterable(((place, SEED + number) for place in places) for number in range(jobs_each))
    return [_creating(await Client.connect(port), orders) for _ in range(num_clients)]


def _creating(client: Client, orders: Iterator[tuple[Place, int]]) -> Work:
    async def work() -> None:
        if (order := next(orders, None)) is None:
            raise OutOfWorkError
        place, seed = order
        body = {"model": TINY, "training_file": place.file_id, "seed": seed}
        await client.post("/v1/fine_tuning/jobs", json.dumps(body).encode(), place.key.get_secret_value())

    return work


def insert_fast(url: SecretStr, sample: Doc) -> Load:
    """In a process of its own: the same document by 16 coroutines, no index but its id."""

    async def go() -> Load:
        async with open_mongo(url.get_secret_value(), "luthier") as db:
            return await closed_loop([_inserting(db, sample) for _ in range(CLIENTS)], ROUND_S)

    return asyncio.run(go())


def work_fast(url: SecretStr, sample: Doc) -> Load:
    """In a process of its own: all that a create does in the database, by 16 coroutines."""

    async def go() -> Load:
        async with open_mongo(url.get_secret_value(), "luthier") as db:
            files = await db["files"].find({}, {"_id": 1}).to_list(None)
            reservations = Together[Doc, bool](partial(make_missing, hasty(db["bench_reserved"])))
            audit = Together[Doc, str](partial(_insert_all, db["bench_audit"]))
            workers = [_working(db, sample, files, reservations, audit) for _ in range(CLIENTS)]
            return await closed_loop(workers, ROUND_S)

    return asyncio.run(go())


async def _insert_all(collection: Collection, rows: Sequence[Doc]) -> list[str]:
    return (await collection.insert_many(list(rows), ordered=False)).inserted_ids


def _working(
    db: Database, sample: Doc, files: list[Doc], reservations: Together[Doc, bool], audit: Together[Doc, str]
) -> Work:
    found = db.finds("files", FILE_FIELDS)

    async def work() -> None:
        number = next(_numbers)
        name, file = f"{id(db)}-{number}", files[number % len(files)]
        reserved = {"_id": name, "core": name, "former": None, "expires_at": "$$NOW"}
        await asyncio.gather(found.find({"_id": file["_id"]}), reservations.add(reserved))
        await db["bench_bare"].insert_one(sample | {"_id": name})
        await audit.add({"_id": name, "operation": "create", "hash": "0" * 64, "prev": "0" * 64, "org": "o"})

    return work


_numbers = itertools.count()


def _inserting(db: Database, sample: Doc) -> Work:
    async def work() -> None:
        await db["bench_bare"].insert_one(sample | {"_id": f"{id(db)}-{next(_numbers)}"})

    return work


if __name__ == "__main__":
    run(measure)
