"""One project's work, however much and however long, does not keep the others' from being done."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from builders.bases import chat_row
from builders.jobs import JobStory, make_spec
from builders.waiting import until
from luthier_common.kit import leases
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStoreUnavailableError
from luthier_file_validator.checker import CheckFaultError
from luthier_file_validator.settings import FileValidatorSettings
from luthier_file_validator.store import PAGE
from luthier_file_validator.workers import LARGE_BYTES, Waiting, Workers

MANY = PAGE + 1
ROWS = b"".join(json.dumps(chat_row(f"Parcel {n}?", f"It arrives on day {n}.")).encode() + b"\n" for n in range(12))


class HandClock(SystemClock):
    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


class Office:
    """Workers that are offered the same checks at every look; each lasts until it is let go."""

    def __init__(self, db: Database, limit: int) -> None:
        self.clock = HandClock()
        self.workers = Workers(db, self.clock, "one", asyncio.Event(), claim_ttl_s=15.0, limit=limit)
        self.ends: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []
        self.num_failed = 0

    async def look(self, *names: str, begun: int) -> None:
        """Offer what has not begun, until so many have."""

        async def work(name: str) -> None:
            self.begun.append(name)
            await self.ends.setdefault(name, asyncio.Event()).wait()

        async def offered() -> bool:
            for name in names:
                if name not in self.begun:
                    num_bytes = LARGE_BYTES + 1 if name.endswith("large") else LARGE_BYTES
                    self.workers.offer(Waiting(name, name[0], num_bytes, lambda name=name: work(name)))  # type: ignore[misc]
            self.workers.start()
            return len(self.begun) >= begun

        await until(offered, what=f"{begun} checks begin")

    async def fail(self, name: str, error: Exception) -> None:
        """Offer work that fails, and see it to its end."""

        async def work() -> None:
            self.num_failed += 1
            raise error

        self.workers.offer(Waiting(name, name[0], 1, work))
        self.workers.start()
        if (task := self.workers._running.get(name)) is not None:
            await task


@pytest.fixture
async def open_office(db: Database) -> AsyncIterator[Callable[[int], Office]]:
    made: list[Office] = []

    def make(limit: int) -> Office:
        made.append(Office(db, limit))
        return made[-1]

    yield make
    for office in made:
        async with office.workers.closing():
            pass


async def test_long_checks_of_one_project_leave_a_place_to_others(open_office: Callable[[int], Office]) -> None:
    office = open_office(3)
    await office.look("a1", "a2", "a3", begun=2)
    assert sorted(office.begun) == ["a1", "a2"], "two that get their places at once begin in any order"
    await office.look("a3", "a4", "b1", begun=3)
    assert office.begun[2] == "b1"


async def test_projects_that_wait_take_turns(open_office: Callable[[int], Office]) -> None:
    office = open_office(1)
    names = ["a1", "a2", "a3", "b1", "b2", "c1"]
    for number in range(len(names)):
        await office.look(*names, begun=number + 1)
        office.ends[office.begun[-1]].set()
    assert office.begun == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_what_is_offered_twice_before_a_start_is_done_once(open_office: Callable[[int], Office]) -> None:
    office = open_office(4)
    await office.look("a1", "a1", "b1", begun=2)
    assert sorted(office.begun) == ["a1", "b1"]


async def test_a_large_file_leaves_a_place_to_small_ones_of_its_own_project(
    open_office: Callable[[int], Office],
) -> None:
    office = open_office(2)
    await office.look("a-large", "a-larger-large", "a-small", begun=2)
    assert sorted(office.begun) == ["a-large", "a-small"]
    office.ends["a-small"].set()
    await office.look("a-larger-large", "a-small-2", "b-small", begun=3)
    assert office.begun[2] == "b-small", "then it is another project's turn"


async def test_large_files_leave_a_place_to_small_ones(
    open_office: Callable[[int], Office],
) -> None:
    office = open_office(2)
    await office.look("a-large", begun=1)
    await office.look("b-large", "b-larger-large", "b-small", begun=2)
    assert office.begun == ["a-large", "b-small"]
    office.ends["b-small"].set()
    await office.look("b-large", "c-small", begun=3)
    assert office.begun[2] == "c-small"
    for name in ("a-large", "c-small"):
        office.ends[name].set()
    await office.look("b-large", begun=4)


async def test_one_projects_hours_of_checks_hold_up_nobody_elses_file_large_or_small(
    open_office: Callable[[int], Office],
) -> None:
    settings = FileValidatorSettings(mongo_url="unused", kafka_url="unused", objects_url="unused")
    office = open_office(settings.max_parallel)
    await office.look("a-large", "a-larger-large", begun=1)
    await office.look("a-larger-large", "b-large", begun=2)
    await office.look("a-larger-large", "c-large", "c-small", begun=3)
    assert office.begun == ["a-large", "b-large", "c-small"]


async def test_a_project_that_waits_with_many_large_files_has_its_small_ones_read_in_between(
    open_office: Callable[[int], Office],
) -> None:
    office = open_office(1)
    names = ["a1-large", "a2-large", "a3-large", "a-small", "b-small"]
    for number in range(len(names)):
        await office.look(*names, begun=number + 1)
        office.ends[office.begun[-1]].set()
    assert office.begun == ["a1-large", "b-small", "a-small", "a2-large", "a3-large"]


async def test_an_outage_of_the_object_store_is_over_for_all_files_half_a_minute_after_its_end(
    open_office: Callable[[int], Office],
) -> None:
    office = open_office(1)
    for num_failed in range(1, 10):
        await office.fail("a1", ObjectStoreUnavailableError("the object store does not answer"))
        assert office.num_failed == num_failed
        office.clock.now_s += 30


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("cannot be read"),
        CheckFaultError("there is no room"),
    ],
)
async def test_what_fails_rests_longer_each_time_until_it_goes_well(
    open_office: Callable[[int], Office], error: Exception
) -> None:
    office = open_office(2)
    for num_failed, rest_s in ((1, 5), (2, 10), (3, 20), (4, 40)):
        await office.fail("a1", error)
        assert office.num_failed == num_failed
        office.clock.now_s += rest_s - 1
        await office.fail("a1", error)
        assert office.num_failed == num_failed, "it rests"
        await office.look("b1", begun=1)
        office.clock.now_s += 1
    await office.look("a1", begun=2)
    office.ends["a1"].set()
    await office.workers._running["a1"]
    for _ in range(2):
        await office.fail("a1", error)
        office.clock.now_s += 5
    assert office.num_failed == 6, "after a success the first rest is a short one again"


async def test_while_the_database_is_away_nothing_rests(open_office: Callable[[int], Office]) -> None:
    office = open_office(1)
    for _ in range(3):
        await office.fail("a1", AutoReconnect("connection closed"))
    assert office.num_failed == 3


async def test_a_file_behind_a_hundred_that_cannot_be_read_now_gets_its_verdict(
    db: Database, make_validator: Callable[..., Any], upload: Callable[..., Any], base: str
) -> None:
    *others, last = sorted([await upload(ROWS) for _ in range(MANY + 1)])
    for file_id in others:
        assert await leases.acquire(db, f"validate/{file_id}", "another", 600.0)
    validator = await make_validator()

    async def verdict() -> Doc | None:
        await validator.files.look()
        found: Doc | None = await db["files"].find_one({"_id": last, "phase": "processed"})
        return found

    assert (await until(verdict, within_s=60, every_s=0.1, what="a verdict"))["verdict"]["valid"]


async def test_a_job_behind_a_hundred_that_wait_for_their_files_is_accepted(
    db: Database, make_validator: Callable[..., Any], upload: Callable[..., Any], base: str
) -> None:
    validator = await make_validator()
    ready = await upload(ROWS)

    async def is_read() -> bool:
        await validator.files.look()
        return bool(await db["files"].find_one({"_id": ready, "phase": "processed"}))

    await until(is_read, within_s=30, every_s=0.1, what="the file is read")
    waiting = await upload(ROWS)
    for _ in range(MANY):
        await JobStory.created(db, spec=make_spec(training_file=waiting), project="proj-busy")
    job = await JobStory.created(db, spec=make_spec(training_file=ready))

    async def is_accepted() -> bool:
        await validator.jobs.look()
        return bool((await job.doc())["phase"] == "waiting")

    await until(is_accepted, within_s=30, every_s=0.1, what="the job is accepted")
    assert await db["jobs"].count_documents({"phase": "checking"}) == MANY
