"""Cancel, pause and resume against completion, takeover and lease expiry, over the whole stack; 1,000 in full."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from builders.bases import make_tiny_base, write_chat_file
from builders.racing_users import Race, broken_promises, plan_race, run_race
from builders.rivals import rival_of
from builders.scale import FULL, scaled
from builders.waiting import until
from builders.whole_stack import broken_in_the_end
from builders.workshop import QUICK, Workshop, stack_settings, wait_ready, workshop_of
from luthier_common.kit.mongo import Database
from luthier_stack.errors import PartFailedError
from luthier_stack.part import Part
from luthier_stack.stack import Stack

NUM_RACES = int(os.environ.get("LUTHIER_PROOF_RACES") or scaled(6, 1_000))
AT_ONCE = 8
TTL_S = float(QUICK["LUTHIER_LEASE_TTL_S"])
FAULT_EVERY_S = (3.0, 7.0)
SETTLED_WITHIN_S = 60.0


@dataclass
class Faults:
    """What was done to the stack meanwhile."""

    num_schedulers_killed: int = 0
    num_apis_killed: int = 0
    num_leases_expired: int = 0


@pytest.fixture
def seed() -> str:
    """LUTHIER_PROOF_SEED replays; printed in any case."""
    chosen = os.environ.get("LUTHIER_PROOF_SEED") or str(random.randrange(10**6))
    print(f"seed {chosen}")
    return chosen


@asynccontextmanager
async def faults(stack: Stack, standby: Part, second_api: Part, dice: random.Random) -> AsyncIterator[Faults]:
    """The active scheduler is killed, or the trainer is stopped past its leases, until the block ends.

    So is the second api, which nobody asks: half of the topics change hands between two relays each time.
    """
    done = Faults()

    async def go_on() -> None:
        # Whoever was killed comes back as the standby, so killing in turns always hits the active one.
        is_ours_next = True
        while True:
            await asyncio.sleep(dice.uniform(*FAULT_EVERY_S))
            if done.num_schedulers_killed % 3 == 2 and done.num_leases_expired <= done.num_schedulers_killed // 3:
                await expire_leases(stack)
                done.num_leases_expired += 1
            await asyncio.gather(stack.wait_ready("scheduler"), standby.wait_ready(60), second_api.wait_ready(60))
            if is_ours_next:
                stack.kill("scheduler")
            else:
                standby.kill(signal.SIGKILL)
            done.num_schedulers_killed += 1
            second_api.kill(signal.SIGKILL)
            done.num_apis_killed += 1
            is_ours_next = not is_ours_next

    going_on = asyncio.create_task(go_on())
    try:
        yield done
        assert not going_on.done(), going_on.exception()
    finally:
        going_on.cancel()
        with suppress(asyncio.CancelledError):
            await going_on
        with suppress(PartFailedError):
            stack.kill("trainer", signal.SIGCONT)


async def expire_leases(stack: Stack) -> None:
    """The trainer stands still for longer than a lease lasts; its children work on."""
    stack.kill("trainer", signal.SIGSTOP)
    try:
        await asyncio.sleep(TTL_S + 2)
    finally:
        stack.kill("trainer", signal.SIGCONT)


async def run_races(workshop: Workshop, training_file: str, seed: str) -> list[Race]:
    waiting, done = iter(range(NUM_RACES)), list[Race]()

    async def work() -> None:
        for number in waiting:
            done.append(await run_race(workshop, training_file, plan_race(seed, number)))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return done


async def settled(db: Database) -> None:
    """Every fact is told, every slot is free and every model of a job that ended otherwise is gone."""

    async def is_settled() -> bool:
        waits = await db["jobs"].find_one({"pend": True}, {"_id": 1})
        holds = await db["nodes"].find_one({"slots": {"$elemMatch": {"holder": {"$ne": None}}}}, {"_id": 1})
        undecided = await db["models"].find_one({"$or": [{"phase": "staged"}, {"pend": True}]}, {"_id": 1})
        return waits is None and holds is None and undecided is None

    await until(is_settled, within_s=SETTLED_WITHIN_S, every_s=0.3, what="outboxes, slots and models to settle")


async def check(stack: Stack, workshop: Workshop, races: list[Race]) -> None:
    broken = []
    for race in races:
        rows = workshop.db["events"].find({"kind": "job", "thing": race.job_id}).sort("seq", 1)
        told = [row["type"] async for row in rows]
        broken += broken_promises(race, await workshop.doc(race.job_id), told)
    acknowledged = [race.job_id for race in races]
    broken += await broken_in_the_end(stack, workshop.db, acknowledged=acknowledged, is_log_whole=True)
    assert not broken, "\n".join(broken)


@pytest.mark.timeout(5400)
async def test_whatever_users_are_told_comes_true(tmp_path: Path, seed: str) -> None:
    base, rows = make_tiny_base(tmp_path / "base"), write_chat_file(tmp_path / "rows.jsonl", 12)
    settings = stack_settings(tmp_path / "home", base, stub_child=True, steps_per_s=10, LUTHIER_MAX_STRIKES="1000")
    async with Stack(settings) as stack:
        await wait_ready(stack)
        async with workshop_of(stack) as workshop:
            training_file = await workshop.upload(rows)
            async with (
                rival_of(stack, "scheduler") as standby,
                rival_of(stack, "api") as second_api,
                faults(stack, standby, second_api, random.Random(seed)) as done,
            ):
                races = await run_races(workshop, training_file, seed)
            await settled(workshop.db)
            print(f"{len(races)} races under {done}; {Counter(answer for race in races for answer in race.answers)}")
            await check(stack, workshop, races)
            num_lost = await workshop.db["events"].count_documents({"type": "RunLost"})
    assert done.num_schedulers_killed > 0
    if FULL:
        answers = Counter((verb, answer == "invalid_state") for race in races for verb, answer in race.answers)
        assert done.num_leases_expired > 0
        assert num_lost >= done.num_leases_expired // 2, f"{done}, {num_lost} runs lost"
        assert len(answers) == 6, f"some verb was never taken, or never refused: {answers}"
