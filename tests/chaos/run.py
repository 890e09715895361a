"""The chaos run: `make chaos [SECONDS=n] [SEED=n]`. The whole stack under faults, then every invariant.

`python -m chaos.run --seconds 60 --seed 7`; the plan follows from the seed alone. Status 1 when anything is broken.
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from builders.bases import make_tiny_base, write_chat_file
from builders.leftovers import stray_processes
from builders.real_kafka import real_script
from builders.real_s3 import supervised_s3
from builders.rivals import SECOND_HOME, rivals_of
from builders.stub_trainer import set_pace
from builders.whole_stack import broken_in_the_end
from builders.workshop import TINY, stack_settings, wait_ready
from chaos.disks import OBJECTS_MIB, RUNS_MIB, DiskRefusedError, SmallDisk
from chaos.plan import LEASE_TTL_S, S3, Fault, Kind, make_plan
from chaos.report import Report, alarms_in, errors_in, unproven
from chaos.saboteur import Process, Saboteur
from chaos.users import Users, broken_promises
from chaos.watch import Watch, recoveries
from luthier_common.contract.topics import COLLECTIONS
from luthier_common.kit.mongo import OUTAGES, Database, open_mongo
from luthier_stack.stack import Stack

BUCKET = "luthier"
SETTLE_S = 60.0
FIRST_RUN_S = 30.0
RECOVERY_S = 20.0
"""So long after the last fault users still create jobs, unless it is seen earlier that jobs go on."""
STALE_S = 3.0
_LOOK_EVERY_S = 0.5


class Chaos:
    """One run over one home."""

    def __init__(
        self,
        stack: Stack,
        others: Mapping[str, Process],
        db: Database,
        plan: list[Fault],
        disks: dict[str, SmallDisk],
        users: Users,
    ) -> None:
        self._stack = stack
        self._db = db
        self._plan = plan
        self._users = users
        self._saboteur = Saboteur(stack, others, disks)
        self._watch = Watch(stack.api_url, db)
        self._has_disks = bool(disks)
        self._backlog_s = 0.0

    async def run(self, seed: int, seconds: float, notes: list[str]) -> Report:
        watching = asyncio.create_task(self._watch.look())
        working = asyncio.create_task(self._users.work())
        beside = {watching, working}
        try:
            await self._saboteur.wait_for_child(FIRST_RUN_S)
            await self._saboteur.carry_out(self._plan)
            over = time.monotonic()
            beside.add(backlog := asyncio.create_task(self._watch_backlog(over)))
            await self._watch.until_recovered(over, RECOVERY_S)
            self._users.close()
            await asyncio.wait({working}, timeout=SETTLE_S)
            left_s = over + SETTLE_S - time.monotonic()
            findings = await broken_in_the_end(
                self._stack, self._db, acknowledged=self._users.acknowledged, within_s=left_s
            )
            settled_s = time.monotonic() - over
            findings += _faults_of(users=working, watch=watching, backlog=backlog)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
        findings += await broken_promises(self._db, self._users)
        done = Counter((one.fault.kind, one.fault.victim) for one in self._saboteur.done)
        report = Report(
            seed=seed,
            seconds=seconds,
            done=done,
            missed=self._saboteur.missed,
            jobs=Counter(await self._ends()),
            num_runs_lost=await self._db["events"].count_documents({"type": "RunLost"}),
            num_jobs_moved=await self._num_moved(),
            answers=self._users.answers,
            recoveries=recoveries(self._saboteur.done, self._watch.samples),
            backlog_s=self._backlog_s,
            settled_s=settled_s,
            findings=findings,
            notes=[*notes, *self._watch.odd, *errors_in(self._stack.home / "logs")],
        )
        fitting = [fault for fault in self._plan if self._has_disks or fault.kind is not Kind.FILL_DISK]
        report.findings = [*findings, *unproven(report, fitting)]
        return report

    async def _watch_backlog(self, since: float) -> None:
        """Until it is cancelled: when was the last moment at which a fact had waited for long."""
        while True:
            with suppress(*OUTAGES):
                if await self._has_backlog():
                    self._backlog_s = time.monotonic() - since
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _has_backlog(self) -> bool:
        late = {"$gt": [{"$subtract": ["$$NOW", {"$min": "$outbox.at"}]}, int(STALE_S * 1000)]}
        query = {"pend": True, "$expr": late}
        return any([await self._db[name].find_one(query, {"_id": 1}) is not None for name in COLLECTIONS.values()])

    async def _num_moved(self) -> int:
        """Jobs whose attempts ran on different nodes."""
        nodes = defaultdict[str, set[str]](set)
        async for row in self._db["events"].find({"type": "JobPlaced"}, {"thing": 1, "body.data.members": 1}):
            nodes[row["thing"]] |= {member["node"] for member in row["body"]["data"]["members"]}
        return sum(len(each) > 1 for each in nodes.values())

    async def _ends(self) -> list[str]:
        ends = []
        async for job in self._db["jobs"].find({}, {"status": 1, "error.code": 1}):
            code = (job.get("error") or {}).get("code")
            ends.append(f"{job['status']} ({code})" if code else str(job["status"]))
        return ends


def _faults_of(**tasks: asyncio.Task[None]) -> list[str]:
    """What ended those that had no reason to end."""
    ended = {name: task.exception() for name, task in tasks.items() if task.done()}
    return [f"the {name} ended with {fault!r}" for name, fault in ended.items() if fault is not None or name != "users"]


async def chaos_run(
    seed: int,
    seconds: float,
    home: Path,
    *,
    real_child: bool = False,
    with_s3: bool = False,
    num_users: int = 5,
    require_disk: bool = False,
) -> Report:
    """Start everything below `home`, hurt it, let it settle, look at it, stop it."""
    plan = make_plan(seed, seconds, with_s3=with_s3)
    base = make_tiny_base(home / "base" / TINY, name=TINY)
    rows = write_chat_file(home / "rows.jsonl", 24)
    stack_home = home / "stack"
    async with _disks(stack_home) as (disks, refusal), _objects(home, with_s3) as (objects, s3):
        (stack_home / "tmp").mkdir(parents=True, exist_ok=True)
        more = {
            "LUTHIER_LEASE_TTL_S": f"{LEASE_TTL_S:g}",
            "LUTHIER_TRAINER_CPU_SLOTS": "2",  # of each of the two trainers
            "LUTHIER_MAX_STRIKES": "50",
            "LUTHIER_RETRY_REST_S": "0.05",
            "LUTHIER_UNREACHABLE_CAP_S": "20",
            "TMPDIR": str(stack_home / "tmp"),
        }
        settings = stack_settings(stack_home, base, objects_url=objects, stub_child=not real_child)
        env = settings.service_env | more
        settings = settings.model_copy(update={"longest_restart_delay_s": 1.0, "service_env": env})
        set_pace(stack_home, steps_per_s=8, load_s=0.5, save_s=0.1)
        async with Stack(settings) as stack, rivals_of(stack) as rivals:
            await wait_ready(stack)
            others = rivals | s3
            report = await _run_over(stack, others, plan, disks, seed, seconds, rows, num_users, real_child)
        logs = [stack_home / "logs", stack_home / SECOND_HOME / "logs"]
        alarms = [alarm for folder in logs for alarm in alarms_in(folder)]
        report.findings = [*report.findings, *alarms, *stray_processes(stack_home, None)]
    if refusal is not None:
        report.notes = [*report.notes, f"no disk could be filled: {refusal}"]
        if require_disk:
            report.findings = [*report.findings, f"no disk could be filled: {refusal}"]
    return report


async def _run_over(
    stack: Stack,
    others: Mapping[str, Process],
    plan: list[Fault],
    disks: dict[str, SmallDisk],
    seed: int,
    seconds: float,
    rows: Path,
    num_users: int,
    real_child: bool,
) -> Report:
    async with (
        open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db,
        AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key) as client,
    ):
        users = Users(client, rows, seed=seed, count=num_users, slowness=2.0 if real_child else 1.0)
        return await Chaos(stack, others, db, plan, disks, users).run(seed, seconds, [])


@asynccontextmanager
async def _disks(home: Path) -> AsyncIterator[tuple[dict[str, SmallDisk], str | None]]:
    """Small disks where run directories and objects lie; none, and why, where mounting is refused."""
    disks = {"runs": SmallDisk(home / "trainer", RUNS_MIB), "objects": SmallDisk(home / "disk", OBJECTS_MIB)}
    mounted: list[SmallDisk] = []
    try:
        try:
            for disk in disks.values():
                await disk.mount()
                mounted.append(disk)
            yield disks, None
        except DiskRefusedError as error:
            yield {}, str(error)
    finally:
        for disk in reversed(mounted):
            await disk.unmount()


@asynccontextmanager
async def _objects(home: Path, with_s3: bool) -> AsyncIterator[tuple[str, dict[str, Process]]]:
    """Where objects are stored, on the disk that is filled; with the server, where they are in one."""
    folder = home / "stack" / "disk" / "objects"
    if not with_s3:
        yield folder.as_uri(), {}
        return
    async with supervised_s3(home / "s3", folder) as (server, process):
        os.environ.update(server.env)
        await server.make_bucket(BUCKET)
        yield f"s3://{BUCKET}", {S3: process}


async def _until_terminated(run: Coroutine[Any, Any, Report]) -> Report:
    """SIGTERM ends the run in order: disks are unmounted, processes are stopped."""
    task = asyncio.ensure_future(run)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    parser = argparse.ArgumentParser("chaos.run", description="Faults by a seeded plan, then every invariant.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time; it is printed")
    parser.add_argument("--child", choices=("stub", "real"), default=os.environ.get("CHILD", "stub"))
    parser.add_argument("--objects", choices=("file", "s3"), default="file", help="s3: in a real server, hurt too")
    parser.add_argument("--require-disk", action="store_true", help="fail where no small disk can be mounted")
    parser.add_argument("--home", type=Path, default=None, help="kept afterwards; default: removed when all is well")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else int.from_bytes(os.urandom(3), "big")
    if with_s3 := asked.objects == "s3":
        try:
            real_script("s3-up")
        except pytest.skip.Exception as missing:
            parser.error(f"--objects s3: {missing}")
    plan = make_plan(seed, asked.seconds, with_s3=with_s3)
    print(f"seed {seed}, {asked.seconds:g} s; the plan:", *plan, sep="\n", flush=True)
    home = asked.home or Path(tempfile.mkdtemp(prefix="luthier-chaos-"))
    is_real = asked.child == "real"
    run = chaos_run(seed, asked.seconds, home, real_child=is_real, with_s3=with_s3, require_disk=asked.require_disk)
    report = asyncio.run(_until_terminated(run))
    print(*report.lines(), sep="\n")
    if report.findings:
        print(f"everything is kept in {home}")
        return 1
    if asked.home is None:
        shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
