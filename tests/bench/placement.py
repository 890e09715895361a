"""From DataAccepted to JobPlaced with an idle node, by the times that the facts themselves carry.

One job after the other through the public API, every service at its default settings; each job is cancelled once it is
placed, and the next begins when the node's slots are free again. The aim is 300 ms. The baseline is what nobody can do
without: two durable writes one after the other, the claim of the slots and the fact.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

from _bench import READY_S, TINY, database_of, report, report_spread, run, stack_of, tiny_base
from openai import AsyncOpenAI

from builders.bases import write_chat_file
from builders.waiting import until
from luthier_common.kit.mongo import Database, Doc
from luthier_stack.stack import Stack

SERVICES = ("registry", "api", "file-validator", "scheduler", "trainer")
NUM_JOBS = 20
AT_MOST_S = 45.0
PLACED = ("placed", "training", "trained")


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_base(Path(folder))
        async with stack_of(SERVICES, base=base) as stack, database_of(stack) as db:
            for name in ("registry", "file-validator", "scheduler", "trainer"):
                await stack.wait_ready(name, READY_S)
            spans = await _place_jobs(stack, db)
            floor = [await _two_writes(db) for _ in range(50)]
    report("placement.jobs", len(spans), "1")
    report_spread("placement.accepted_to_placed", [span[0] for span in spans], "ms", floor)
    report_spread("placement.created_to_accepted", [span[1] for span in spans])


async def _place_jobs(stack: Stack, db: Database) -> list[tuple[float, float]]:
    spans: list[tuple[float, float]] = []
    ends_at = time.monotonic() + AT_MOST_S
    rows = write_chat_file(stack.home / "rows.jsonl", 12)
    async with AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key) as client:
        file = await client.files.create(file=rows, purpose="fine-tune")
        for number in range(NUM_JOBS):
            await until(partial(_is_idle, db), within_s=READY_S, what="an idle node")
            job = await client.fine_tuning.jobs.create(model=TINY, training_file=file.id, seed=number)
            await until(partial(_is_placed, db, job.id), within_s=READY_S, what="the job to be placed")
            await client.fine_tuning.jobs.cancel(job.id)
            spans.append(await until(partial(_spans, db, job.id), what="the facts"))
            if time.monotonic() > ends_at:
                break
    return spans


async def _is_idle(db: Database) -> bool:
    query = {"role": "trainer", "phase": "live", "slots.holder": None}
    return await db["nodes"].find_one(query) is not None


async def _is_placed(db: Database, job_id: str) -> bool:
    return await db["jobs"].find_one({"_id": job_id, "phase": {"$in": PLACED}}) is not None


async def _spans(db: Database, job_id: str) -> tuple[float, float] | None:
    """Accepted to placed and created to accepted, in milliseconds; None while the event list is behind."""
    rows = await db["events"].find({"thing": job_id}, {"type": 1, "at": 1}).to_list(None)
    at = {row["type"]: row["at"] for row in rows}
    if "JobPlaced" not in at or "DataAccepted" not in at or "JobCreated" not in at:
        return None
    accepted = at["DataAccepted"]
    return (at["JobPlaced"] - accepted).total_seconds() * 1000, (accepted - at["JobCreated"]).total_seconds() * 1000


async def _two_writes(db: Database) -> float:
    began_at = time.perf_counter()
    for name in ("claim", "fact"):
        change: Doc = {"$inc": {"count": 1}}
        await db["bench_floor"].find_one_and_update({"_id": name}, change, upsert=True)
    return (time.perf_counter() - began_at) * 1000


if __name__ == "__main__":
    run(measure)
