"""Several api processes relay and project: each has its share of the partitions, and none is left without."""

import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from builders.journal_ground import JournalGround
from builders.waiting import until
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.journal.projector import POSITIONS, Projector
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Reader, ensure_topics

ALL = {kind: topic.num_partitions for kind, topic in TOPICS.items()}
HALF = {Kind.JOB: 2, Kind.FILE: 1, Kind.MODEL: 1}
OTHER_HALF = {**HALF, Kind.NODE: 1}


@pytest.fixture
async def ground(db: Database, mongo_url: str, kafka_url: str, tmp_path: Path) -> AsyncIterator[JournalGround]:
    await ensure_topics(kafka_url)
    async with JournalGround(db, mongo_url, kafka_url, tmp_path).open() as ground:
        yield ground


async def shares(db: Database, owner: str) -> tuple[dict[Kind, int], dict[Kind, int]]:
    """How many partitions of each kind this process tells, and how many it projects."""
    mine = {"owner": owner, "$expr": {"$gt": ["$until", "$$NOW"]}}
    told = [row["_id"].split("/") async for row in db["leases"].find(mine | {"_id": {"$regex": "^relay/"}})]
    projected = [row["_id"].split("/") async for row in db[POSITIONS].find(mine)]
    kinds = {topic.name: kind for kind, topic in TOPICS.items()}
    return Counter(Kind(kind) for _, kind, _ in told), Counter(kinds[topic] for topic, _ in projected)


async def until_shared(db: Database, **wanted: dict[Kind, int]) -> None:
    async def is_shared() -> bool:
        return all([await shares(db, owner) == (share, share) for owner, share in wanted.items()])

    await until(is_shared, within_s=30, every_s=0.1, what=f"{wanted}")


async def test_two_processes_have_half_of_each_topic_and_one_takes_over_what_the_other_held(
    db: Database, ground: JournalGround
) -> None:
    await ground.start_journal("one")
    await until_shared(db, one=ALL)
    await ground.begin(4)
    await ground.start_journal("two")
    await ground.begin(4)
    await until_shared(db, one=OTHER_HALF, two=HALF)
    await ground.begin(4)
    ground.signal("one", signal.SIGSTOP)
    await ground.begin(4)
    await until_shared(db, two=ALL)
    ground.signal("one", signal.SIGCONT)
    await ground.begin(4)
    await until_shared(db, one=OTHER_HALF, two=HALF)
    await ground.stop("two", signal.SIGKILL)
    await ground.begin(4)
    await until_shared(db, one=ALL)
    await ground.drained()
    await ground.listed()


async def test_partitions_that_nobody_comes_for_are_told_though_they_are_more_than_a_share(
    db: Database, ground: JournalGround
) -> None:
    later = {"$dateAdd": {"startDate": "$$NOW", "unit": "hour", "amount": 1}}
    for room in ("relay", "projector"):
        for number in range(3):
            ghost = [{"$set": {"room": room, "seen_at": later}}]
            await db["presence"].update_one({"_id": f"{room}/ghost-{number}"}, ghost, upsert=True)
    await ground.start_journal("one")
    for _ in range(3):
        await ground.begin(4)
        await ground.drained()
    await ground.listed()


async def test_a_projector_that_cannot_read_leaves_all_to_the_others(db: Database, ground: JournalGround) -> None:
    deaf = Projector(db, Reader("127.0.0.1:1"), owner="deaf", clock=SystemClock())
    with pytest.raises(TransientError):
        await deaf.step()
    assert (await shares(db, "deaf"))[1] == ALL
    await ground.start_journal("one")

    async def is_left() -> bool:
        with suppress(TransientError):
            await deaf.step()
        return await shares(db, "one") == (ALL, ALL)

    await until(is_left, within_s=30, every_s=0.1, what="all to be left to the other one")
