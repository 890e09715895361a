"""Every fail point of the code is hit by a fault in a running system, which then settles by itself, and is looked at.

Sample: one round, each name with one fault drawn from the seed. Full: for each seed four rounds, one for each fault.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
import pytest
from openai import AsyncOpenAI

from builders.bases import make_tiny_base
from builders.packages import PACKAGES
from builders.scale import FULL
from builders.varied import Stories, Story
from builders.waiting import until
from builders.whole_stack import broken_in_the_end
from builders.workshop import FINAL, TINY, Workshop, stack_settings
from luthier_api.audit import verify
from luthier_common.kit.failpoints import failpoint_names
from luthier_common.kit.mongo import Database, Doc, open_mongo
from luthier_stack import part
from luthier_stack.stack import Stack

NAMES = failpoint_names(*PACKAGES)
S3 = "objects_s3.*"
"""The embedded stack keeps objects in a directory; `test_objects_failpoints` has these."""
LEASE_S = 4.0
FAULTS = {"kill": "kill", "raise": "raise", "lost": "lost", "delay": f"freeze:{1.5 * LEASE_S:g}"}
"""A delay stops the whole process, renewals too: what it did goes on under a lease that somebody else may have."""
BUSY = ("journal.*", "relay.*", "projector.*_insert", "projector.after_trim", "projector.after_move", "leases.after_*")
OFTEN = ("objects.*", "ledger.*")
CHANCE = {BUSY: 0.1, OFTEN: 0.4}
"""Where a point is passed all the time, its one fault must not always meet the first who passes, while rooms start."""
DRAWN = ("kill", "delay", *("raise", "lost") * 15)
"""A sample has little time for restarts and for pauses past the lease."""
QUIET = {
    "LUTHIER_AUDIT_S": "2",
    "LUTHIER_SWEEP_S": "2",
    "LUTHIER_SERVING_WAIT_S": "60",
    "LUTHIER_FAILED_KEYS_PER_MINUTE": "100000",
}
NUM_TELLERS = 4
WITHIN_S = 1800.0 if FULL else 400.0
SETTLED_WITHIN_S = 120.0
BAD_ROWS, EXHAUSTED = "missing_content", "attempts_exhausted"
"""One job may meet three faults in a row."""
SEED = int(os.environ.get("LUTHIER_PROOF_SEED", "1"))
ONLY = os.environ.get("LUTHIER_PROOF_FAILPOINTS", "*").split(";")
"""Patterns of names: a finding is looked into with these few."""
ROUNDS = [(seed, fault) for seed in range(SEED, SEED + 20) for fault in FAULTS] if FULL else [(SEED, "any")]
AIMS: dict[str, tuple[str, ...]] = {
    "a_job_that_succeeds": (
        *(
            "journal.*",
            "relay.*",
            "projector.*",
            "auditor.*",
            "leases.*",
            "ledger.*",
            "objects.*",
            "bases.*",
            "broker.*",
        ),
        *("jobs.*", "files.*", "api.*", "audit.*", "repeats.*", "keys.*", "responses.*"),
        *("validator.*", "scheduler.*", "trainer.*", "registry.*", "inference.*"),
    ),
    "a_job_that_is_cancelled": ("jobs.after_verb", "trainer.*"),
    "a_job_that_is_deleted": ("deletion.*",),
    "more_jobs_than_slots": ("scheduler.before_positions",),
    "a_job_that_is_cancelled_late": ("registry.before_model_deleted", "registry.*", "inference.*"),
    "a_job_that_is_paused": ("jobs.after_verb", "trainer.*"),
    "a_checkpoint_that_is_damaged": ("trainer.before_reject",),
    "a_job_whose_node_falls_silent": ("scheduler.before_run_lost", "scheduler.before_node_lost"),
    "a_job_whose_child_always_dies": ("scheduler.before_exhausted", "trainer.after_child"),
    "files_good_and_bad": ("api.*", "files.*", "ledger.*", "validator.*", "audit.*"),
    "an_upload_in_parts": ("uploads.*", "api.*", "ledger.*", "objects.*"),
    "a_model_that_is_shared_and_deleted": ("models.*", "permissions.*", "registry.mid_release"),
    "people_and_keys": ("tenancy.*", "keys.*", "audit.*"),
    "a_request_with_a_key": ("idempotency.*",),
    "time_that_passes": ("sweep.*", "ledger.*", "objects.after_delete"),
    "a_broker_that_comes_back_empty": ("projector.after_restart",),
    "a_migration": ("migrate.*",),
}
"""The stories that may reach a name."""
ALONE = {
    "a_job_whose_node_falls_silent",
    "a_job_whose_child_always_dies",
    "a_broker_that_comes_back_empty",
    "a_migration",
}
"""Stories that trouble all others: one at a time."""


@dataclass(frozen=True)
class Round:
    """Which name breaks how, and the file in which the processes say what broke."""

    faults: Mapping[str, str]
    log_path: Path
    seed: int

    def rules(self, *patterns: str) -> dict[str, str]:
        """The environment in which the names that fit a pattern break."""
        chosen = {name: rule for name, rule in self.faults.items() if any(fnmatchcase(name, p) for p in patterns)}
        return {
            "LUTHIER_FAILPOINTS": ";".join(f"{name}={rule}" for name, rule in chosen.items()),
            "LUTHIER_FAILPOINTS_LOG": str(self.log_path),
            "LUTHIER_FAILPOINTS_SEED": str(self.seed),
        }

    def hit(self) -> Counter[str]:
        """How often each name has broken."""
        if not self.log_path.exists():
            return Counter()
        lines = (line.split() for line in self.log_path.read_text().splitlines())
        return Counter(words[0] for words in lines if len(words) == 3 and words[1] != "pass")

    def missing(self) -> list[str]:
        return sorted(self.faults.keys() - self.hit().keys())


def draw(seed: int, fault: str, log_path: Path) -> Round:
    dice = random.Random(seed)
    kinds = {name: dice.choice(DRAWN) if fault == "any" else fault for name in NAMES}
    chosen = (name for name in NAMES if not fnmatchcase(name, S3) and any(fnmatchcase(name, p) for p in ONLY))
    return Round({name: f"{FAULTS[kinds[name]]}{chance(name)}*1" for name in chosen}, log_path, seed)


def chance(name: str) -> str:
    """The probability that a rule for this name states; none where it is certain."""
    return next((f":{c}" for patterns, c in CHANCE.items() if any(fnmatchcase(name, p) for p in patterns)), "")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("seed", "fault"), ROUNDS, ids=[f"{seed}-{fault}" for seed, fault in ROUNDS])
async def test_every_fail_point_breaks_and_nothing_is_lost(
    tmp_path: Path, seed: int, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "LONGEST_DELAY_S", 1.0)
    monkeypatch.setattr(part, "STARTUP_DEATHS", 1000)
    print(f"seed {seed}, fault {fault}: {len(NAMES)} names")
    given = draw(seed, fault, tmp_path / "failpoints.log")
    base = make_tiny_base(tmp_path / "base" / TINY, name=TINY)
    others = [name for name in given.faults if not fnmatchcase(name, "migrate.*")]
    settings = stack_settings(tmp_path / "home", base, stub_child=True, **QUIET, **given.rules(*others))
    async with Stack(settings) as stack, workshop_under_faults(stack) as shop:
        stories = Stories(stack, shop, tmp_path, given.rules("migrate.*"))
        took_s = await tell_until_all_broke(stories, given, random.Random(seed))
        settled_s = await settle(stack, shop, stories)
        print(f"{given.hit().total()} faults in {took_s:.0f} s, settled in {settled_s:.0f} s")
        print(f"told: {dict(stories.told)}; cut short: {dict(stories.cut_short)}")
        assert stories.broken + await stories.broken_promises() == []
        assert await unreasonable_ends(shop.db, stories) == []
        assert await broken_in_the_end(stack, shop.db, acknowledged=stories.acknowledged) == []
        assert (await verify(shop.db)).broken is None
        assert alarms(stack.home / "logs") == []


@asynccontextmanager
async def workshop_under_faults(stack: Stack) -> AsyncIterator[Workshop]:
    """A patient user; the stack is ready once, whatever broke while it started."""
    await until_ready(stack)
    key = stack.admin_key
    async with (
        open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db,
        AsyncOpenAI(
            base_url=f"{stack.api_url}/v1", api_key=key, admin_api_key=key, max_retries=12, timeout=30
        ) as client,
    ):
        yield Workshop(client, db)


async def until_ready(stack: Stack) -> None:
    async def is_ready() -> bool:
        async with httpx2.AsyncClient(timeout=5) as http:
            with suppress(httpx2.HTTPError):
                return (await http.get(f"{stack.api_url}/readyz")).status_code == 200
        return False

    await until(is_ready, within_s=SETTLED_WITHIN_S, every_s=0.2, what="/readyz 200")


async def tell_until_all_broke(stories: Stories, given: Round, dice: random.Random) -> float:
    """Tell stories that may reach what has not broken yet; the seconds until everything has."""
    began_at = time.monotonic()
    alone = asyncio.Lock()
    told: Counter[str] = Counter()

    def next_story() -> Story | None:
        missing = given.missing()
        fitting = [s for s, patterns in AIMS.items() if any(fnmatchcase(n, p) for n in missing for p in patterns)]
        fitting = [s for s in fitting if not (s in ALONE and alone.locked())]
        if not fitting:
            return None
        name = min(dice.sample(fitting, len(fitting)), key=lambda s: told[s])
        told[name] += 1
        story: Story = getattr(stories, name)
        return story

    async def teller() -> None:
        while given.missing():
            assert time.monotonic() - began_at < WITHIN_S, f"never hit: {given.missing()}; stories: {stories.told}"
            if (story := next_story()) is None:
                await asyncio.sleep(0.2)
            elif story.__name__ in ALONE:
                async with alone:
                    await stories.tell(story)
            else:
                await stories.tell(story)

    await asyncio.gather(*(teller() for _ in range(NUM_TELLERS)))
    return time.monotonic() - began_at


async def settle(stack: Stack, shop: Workshop, stories: Stories) -> float:
    """After the last fault: what is paused is ended by its user, everything else ends by itself; a new job succeeds."""
    began_at = time.monotonic()
    await until_ready(stack)

    async def is_quiet() -> bool:
        async for job in shop.db["jobs"].find({"phase": "paused"}, {"_id": 1}):
            await shop.client.fine_tuning.jobs.cancel(job["_id"])
        return not await open_ends(shop.db)

    async def until_quiet() -> None:
        try:
            await until(is_quiet, within_s=SETTLED_WITHIN_S, every_s=0.5)
        except AssertionError:
            raise AssertionError(f"not settled: {await open_ends(shop.db)}") from None

    await until_quiet()  # what the faults left behind would take the new job's time
    stories.models.clear()
    await stories.a_job_that_succeeds()
    assert stories.models, "no job succeeds after the faults"
    await until_quiet()
    await until_ready(stack)
    return time.monotonic() - began_at


async def unreasonable_ends(db: Database, stories: Stories) -> list[str]:
    """Jobs that failed for another reason than bad rows of theirs, or too many faults in a row."""

    def meant(job: Doc) -> str:
        return BAD_ROWS if job["spec"]["training_file"] in stories.bad_files else EXHAUSTED

    failed = db["jobs"].find({"status": "failed"}, {"error": 1, "spec": 1})
    return [f"{job['_id']} failed: {job['error']}" async for job in failed if job["error"]["code"] != meant(job)]


async def open_ends(db: Database) -> list[str]:
    """What has not come to its end."""
    found = [f"{j['_id']} is {j['phase']}" async for j in db["jobs"].find({"status": {"$nin": list(FINAL)}})]
    found += [f"{j['_id']} still has bytes to let go" async for j in db["jobs"].find({"release_due": True})]
    for name in ("jobs", "files", "models", "nodes"):
        found += [f"{d['_id']} has {len(d['outbox'])} facts to tell" async for d in db[name].find({"pend": True})]
    found += [f"{f['_id']} is unread" async for f in db["files"].find({"phase": "uploaded"})]
    found += [f"{m['_id']} is staged" async for m in db["models"].find({"phase": "staged"})]
    async for node in db["nodes"].find({"role": "trainer"}):
        found += [f"{slot['holder']} holds a slot" for slot in node["slots"] if slot["holder"]]
    return found


def alarms(logs: Path) -> list[str]:
    """Lines that say that an invariant does not hold. Facts that wait long are no harm while their server is down."""
    lines = (line for path in logs.glob("*.log") for line in path.read_text(errors="replace").splitlines())
    return [line[:300] for line in lines if "alarm:" in line and "late facts" not in line]
