"""From JobPlaced to the first StepCompleted, and where the time goes, beside a bare script that makes one such step.

Two jobs, one after the other: `cold` fetches the base to the node, `warm` finds it there. The parts come from what the
system itself says: the facts' times, the lease's first renewal (the supervisor has seen its claim), the supervisor's
log line when the child is started. What its imports cost is timed in a fresh process: a child says nothing before.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from _bench import READY_S, ROOT, Base, database_of, real_base, report, run, stack_of
from openai import AsyncOpenAI

from builders.bases import write_chat_file
from builders.waiting import until
from luthier_common.kit.mongo import Database, Doc
from luthier_stack.stack import Stack

SERVICES = ("registry", "api", "file-validator", "scheduler", "trainer")
NUM_THREADS = os.cpu_count() or 1
BARE_SCRIPT = ROOT / "tests" / "bench" / "_bare_sft.py"
PROBE = "import luthier_trainer.training.run"
CHILD_STARTED = "the child has started"


@dataclass(frozen=True)
class Way:
    """When a job came where, in seconds since it was placed."""

    claim_seen: float
    child_started: float
    loaded: float
    first_step: float


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = real_base(Path(folder))
        rows = write_chat_file(Path(folder) / "rows.jsonl", 12)
        async with stack_of(SERVICES, base=base) as stack, database_of(stack) as db:
            for name in ("registry", "file-validator", "scheduler", "trainer"):
                await stack.wait_ready(name, READY_S)
            cold, warm = await _two_jobs(stack, db, base, rows)
        bare, bare_s = await _bare(base, rows)
        imports_s = await _timed(sys.executable, "-c", PROBE)
    report("first_step.imports_alone", imports_s, "s", bare_s - bare["load_s"] - bare["step_s"])
    for name, way in (("cold", cold), ("warm", warm)):
        _report_way(f"first_step.{name}", way, bare, bare_s)


def _report_way(name: str, way: Way, bare: dict[str, float], bare_s: float) -> None:
    """The four parts add up to the total; the last holds the step itself, and telling it."""
    report(f"{name}.placed_to_claim_seen", way.claim_seen, "s")
    report(f"{name}.files_base_and_spawn", way.child_started - way.claim_seen, "s")
    report(f"{name}.child_imports_and_load", way.loaded - way.child_started, "s", bare_s - bare["step_s"])
    report(f"{name}.loaded_to_first_step", way.first_step - way.loaded, "s", bare["step_s"])
    report(f"{name}.total", way.first_step, "s", bare_s)


async def _two_jobs(stack: Stack, db: Database, base: Base, rows: Path) -> tuple[Way, Way]:
    async with AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key) as client:
        file = await client.files.create(file=rows, purpose="fine-tune")
        ways: list[Way] = []
        for seed in range(2):
            job = await client.fine_tuning.jobs.create(
                model=base.name,
                training_file=file.id,
                seed=seed,
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "batch_size": 4}}},
            )
            ways.append(await _way_of(stack, db, job.id))
            await client.fine_tuning.jobs.cancel(job.id)
            await until(lambda: db["nodes"].find_one({"slots.holder": None}), within_s=READY_S, what="freed slots")
    return ways[0], ways[1]


async def _way_of(stack: Stack, db: Database, job_id: str) -> Way:
    async def lease() -> Doc | None:
        doc = await db["jobs"].find_one({"_id": job_id}, {"lease": 1})
        return doc["lease"] if doc else None

    async def facts() -> dict[str, Doc] | None:
        found = await db["events"].find({"thing": job_id}).sort("seq", -1).to_list(None)
        rows: dict[str, Doc] = {row["type"]: row for row in found}
        if ended := rows.keys() & {"RunFailed", "JobFailed", "DataRejected"}:
            raise SystemExit(f"the job did not come to its first step: {ended}")
        return rows if "StepCompleted" in rows else None

    seen = (await until(lease, within_s=READY_S, every_s=0.01, what="the lease"))["renewed_at"]
    told = await until(facts, within_s=READY_S, every_s=0.05, what="the first step")
    placed: datetime = told["JobPlaced"]["at"]
    started = _child_started(stack, job_id)
    return Way(
        claim_seen=(seen - placed).total_seconds(),
        child_started=(started - placed).total_seconds(),
        loaded=(told["RunStarted"]["at"] - placed).total_seconds(),
        first_step=(told["StepCompleted"]["at"] - placed).total_seconds(),
    )


def _child_started(stack: Stack, job_id: str) -> datetime:
    for line in (stack.home / "logs" / "trainer.log").read_text().splitlines():
        if CHILD_STARTED in line and job_id in line:
            return datetime.fromisoformat(json.loads(line)["at"])
    raise SystemExit("the trainer's log does not say when the child was started")


async def _bare(base: Base, rows: Path) -> tuple[dict[str, float], float]:
    """The parts that the script reports, and its whole time until then; its end is not counted."""
    began_at = time.perf_counter()
    script = await _start(sys.executable, str(BARE_SCRIPT), str(base.directory), str(rows), str(NUM_THREADS))
    assert script.stdout is not None
    parts: dict[str, float] | None = None
    while line := await script.stdout.readline():
        if line.startswith(b'{"imports_s"'):
            parts = json.loads(line)
            break
    took_s = time.perf_counter() - began_at
    await script.communicate()
    if parts is None:
        raise SystemExit("the bare script failed")
    return parts, took_s


async def _timed(*command: str) -> float:
    began_at = time.perf_counter()
    process = await _start(*command)
    await process.communicate()
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - began_at


async def _start(*command: str) -> asyncio.subprocess.Process:
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env = os.environ | quiet | {"OMP_NUM_THREADS": str(NUM_THREADS)}
    return await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)


if __name__ == "__main__":
    run(measure)
