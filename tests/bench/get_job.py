"""`GET /v1/fine_tuning/jobs/{id}` by 50 clients, beside the bare driver's find_one by 50 coroutines.

One API process against one driver process over the same mongod and the same documents; the two take turns. The gate is
0.30 of the bare rate, the aim 0.45.
"""

import asyncio
import random

from _bench import SEED, database_of, elsewhere, mongo_url_of, percentile, report, report_spread, run, stack_of
from _load import Client, Load, Work, closed_loop
from pydantic import SecretStr

from builders.jobs import JobStory, make_step
from luthier_api.store.repository import JOB_FIELDS
from luthier_common.kit.mongo import Database, open_mongo

CLIENTS = 50
NUM_JOBS = 50
ROUNDS = 3
ROUND_S = 5.0


async def measure() -> None:
    async with stack_of(["api"]) as stack, database_of(stack) as db:
        jobs = [await _training_job(db) for _ in range(NUM_JOBS)]
        ours: list[Load] = []
        bare: list[Load] = []
        for number in range(ROUNDS):
            ours.append(await elsewhere(ask_api, stack.port, SecretStr(stack.admin_key), jobs, number))
            bare.append(await elsewhere(ask_driver, mongo_url_of(stack), jobs, number))
    rates = [percentile([load.rate for load in loads], 50) for loads in (ours, bare)]
    report("get_job.rate", rates[0], "1/s", rates[1])
    latencies = [[latency for load in loads for latency in load.latencies_ms] for loads in (ours, bare)]
    report_spread("get_job.latency", latencies[0], "ms", latencies[1])


async def _training_job(db: Database) -> str:
    """A job as it looks in the middle of its run."""
    story = await (await JobStory.created(db, metadata=[{"k": "purpose", "v": "bench"}])).in_training()
    await story.tell(*(make_step(step) for step in range(1, 4)), attempt=1)
    return story.id


def ask_api(port: int, key: SecretStr, jobs: list[str], number: int) -> Load:
    """In a process of its own: 50 connections, each asking for one job after the other."""

    async def go() -> Load:
        clients = [await Client.connect(port, key.get_secret_value()) for _ in range(CLIENTS)]
        return await closed_loop(
            [_getting(client, jobs, SEED + number + n) for n, client in enumerate(clients)], ROUND_S
        )

    return asyncio.run(go())


def _getting(client: Client, jobs: list[str], seed: int) -> Work:
    draw = random.Random(seed)

    async def work() -> None:
        await client.get(f"/v1/fine_tuning/jobs/{draw.choice(jobs)}")

    return work


def ask_driver(url: SecretStr, jobs: list[str], number: int) -> Load:
    """In a process of its own: the same documents and fields by 50 coroutines, and nothing else."""

    async def go() -> Load:
        async with open_mongo(url.get_secret_value(), "luthier") as db:
            return await closed_loop([_finding(db, jobs, SEED + number + n) for n in range(CLIENTS)], ROUND_S)

    return asyncio.run(go())


def _finding(db: Database, jobs: list[str], seed: int) -> Work:
    draw = random.Random(seed)

    async def work() -> None:
        assert await db["jobs"].find_one({"_id": draw.choice(jobs)}, JOB_FIELDS) is not None

    return work


if __name__ == "__main__":
    run(measure)
