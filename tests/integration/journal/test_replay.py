"""Operators compare list and topics and fill one from the other; whatever differs is named, nothing is overwritten."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from builders.jobs import JobStory, make_step
from builders.waiting import until
from builders.wrong_ends import CutEnds, EarlyEnds
from luthier_common.contract.topics import TOPICS, Kind, partition_of
from luthier_common.journal import replay
from luthier_common.journal.replay import Compared, rebuild, republish, verify
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Part, Reader, Record, Writer
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

Journal = Callable[..., AbstractAsyncContextManager[None]]
SOURCE = "luthier/test/1"
JOBS = TOPICS[Kind.JOB].name


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of this test's own: what is on its topics is in this test's list."""
    settings = StackSettings(home=tmp_path, services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack:
        yield stack.env["LUTHIER_KAFKA_URL"]


@pytest.fixture
async def reader(broker: str) -> AsyncIterator[Reader]:
    reader = Reader(broker)
    yield reader
    await reader.close()


@pytest.fixture
async def story(db: Database, journal: Journal, broker: str) -> JobStory:
    """A job whose facts are all told; nothing runs any more."""
    async with journal(broker):
        story = await (await JobStory.created(db)).in_training()
        await story.tell(*(make_step(step) for step in range(1, 5)), attempt=1)
        await until(lambda: emptied(db), what="empty outboxes")
    return story


async def emptied(db: Database) -> bool:
    return await db["jobs"].find_one({"pend": True}, {"_id": 1}) is None


async def compared(db: Database, reader: Reader, job_id: str, source: str = SOURCE) -> Compared:
    parts = await verify(db, reader, source, wait_s=0.5)
    part = Part(JOBS, partition_of(Kind.JOB, job_id))
    assert all(one.is_equal for one in parts if one.part != part)
    return next(one for one in parts if one.part == part)


async def rows_of(db: Database) -> list[dict[str, object]]:
    return await db["events"].find({}).sort("_id", 1).to_list(None)


async def test_what_differs_is_told_apart(db: Database, reader: Reader, story: JobStory) -> None:
    seq = (await story.doc())["seq"]
    one = await compared(db, reader, story.id)
    assert (one.is_equal, one.num_compared, one.start, one.end) == (True, seq, 0, seq)

    (gone, changed, invented) = (f"job/{story.id}/{number}" for number in (2, 3, seq + 1))
    row = await db["events"].find_one({"_id": changed})
    assert row is not None
    await db["events"].insert_one({**row, "_id": invented, "seq": seq + 1})
    await db["events"].delete_one({"_id": gone})
    await db["events"].update_one({"_id": changed}, {"$set": {"body.project": "proj-other"}})
    one = await compared(db, reader, story.id)
    assert (list(one.unlisted), one.different, one.untold) == ([gone], [changed], [invented])


async def test_a_wrong_end_of_a_log_is_no_cut_log(db: Database, broker: str, story: JobStory) -> None:
    reader = EarlyEnds(broker)
    one = await compared(db, reader, story.id)
    await reader.close()
    assert (one.is_equal, one.num_compared) == (True, (await story.doc())["seq"])


async def test_a_log_that_is_cut_meanwhile_is_not_compared(db: Database, broker: str, story: JobStory) -> None:
    reader = CutEnds(broker)
    with pytest.raises(TransientError, match="cut meanwhile"):
        await compared(db, reader, story.id)
    await reader.close()


async def test_an_emptied_list_is_filled_again_and_what_is_there_stays(
    db: Database, reader: Reader, story: JobStory
) -> None:
    before = await rows_of(db)
    await db["events"].delete_many({"seq": {"$ne": 3}})
    await db["events"].update_one({"seq": 3}, {"$set": {"sha256": "0" * 64}})
    done = {one.kind: one for one in await rebuild(db, reader, SOURCE)}
    assert (done[Kind.JOB].num_new, done[Kind.JOB].refused) == (len(before) - 1, {f"job/{story.id}/3"})
    await db["events"].delete_many({})
    done = {one.kind: one for one in await rebuild(db, reader, SOURCE)}
    assert (done[Kind.JOB].num_new, done[Kind.JOB].num_incomplete) == (len(before), 0)
    assert await rows_of(db) == before
    done = {one.kind: one for one in await rebuild(db, reader, SOURCE)}
    assert (done[Kind.JOB].num_new, done[Kind.JOB].num_known) == (0, len(before))


async def records_of(reader: Reader, job_id: str) -> list[Record]:
    part = Part(JOBS, partition_of(Kind.JOB, job_id))
    await reader.seek({part: 0})
    _, end = (await reader.bounds([part]))[part]
    found: list[Record] = []
    while len(found) < end:
        batches, _ = await reader.read(wait_ms=200)
        found += batches.get(part, [])
    return found


async def test_a_fact_is_told_again_with_the_same_bytes_and_headers_and_only_once(
    db: Database, broker: str, reader: Reader, story: JobStory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "ROWS_A_LOOK", 3)
    before = await records_of(reader, story.id)
    settings = StackSettings(home=tmp_path / "second", services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack:
        empty = stack.env["LUTHIER_KAFKA_URL"]
        writer, second = Writer(empty), Reader(empty)
        await writer.send(JOBS, partition_of(Kind.JOB, story.id), [])
        for num_told in (len(before), 0):
            done = await republish(db, second, writer, SOURCE)
            assert [one.num_sent for one in done if one.kind is Kind.JOB] == [num_told]
        after = await records_of(second, story.id)
        assert [(r.value, r.headers) for r in after] == [(r.value, r.headers) for r in before]
        assert (await compared(db, second, story.id)).is_equal
        await writer.close()
        await second.close()


async def test_a_row_that_was_changed_is_not_told(db: Database, broker: str, reader: Reader, story: JobStory) -> None:
    """After a restored backup everything is told again under the new source."""
    await db["events"].update_one({"seq": 2}, {"$set": {"body.project": "proj-other"}})
    writer = Writer(broker)
    done = {one.kind: one for one in await republish(db, reader, writer, "luthier/test/2")}
    await writer.close()
    assert done[Kind.JOB].damaged == [f"job/{story.id}/2"]
    assert done[Kind.JOB].num_sent == (await story.doc())["seq"] - 1
    one = await compared(db, reader, story.id, "luthier/test/2")
    assert one.num_other == one.num_compared + 1
    assert one.untold == [f"job/{story.id}/2"]


async def test_what_is_older_than_the_log_is_kept_and_not_missed(
    db: Database, journal: Journal, real_kafka_url: str
) -> None:
    source = f"luthier/{db.name}/1"
    async with journal(real_kafka_url, source=source):
        story = await (await JobStory.created(db)).in_training()
        await until(lambda: emptied(db), what="empty outboxes")
    before = await rows_of(db)
    part = TopicPartition(JOBS, partition_of(Kind.JOB, story.id))
    row = await db["events"].find_one({"thing": story.id, "seq": 3})
    assert row is not None
    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka_url)
    await admin.start()
    await admin.delete_records({part: RecordsToDelete(before_offset=row["offset"])})
    await admin.close()
    reader = Reader(real_kafka_url)
    try:
        one = await compared(db, reader, story.id, source)
        assert (one.is_equal, one.num_older, one.start) == (True, 2, row["offset"])
        await db["events"].delete_many({"seq": {"$gt": 2}})
        done = {one.kind: one for one in await rebuild(db, reader, source)}
        assert done[Kind.JOB].num_incomplete == 0
        assert await rows_of(db) == before
        await db["events"].delete_many({})
        done = {one.kind: one for one in await rebuild(db, reader, source)}
        assert (done[Kind.JOB].num_new, done[Kind.JOB].num_incomplete) == (len(before) - 2, 1)
    finally:
        await reader.close()


async def test_facts_of_before_a_restored_backup_are_passed_over(
    db: Database, journal: Journal, broker: str, story: JobStory
) -> None:
    """The restored database does not know the last facts that were told; the new ones take their numbers."""
    rows = await rows_of(db)
    last = (await story.doc())["seq"]
    await db["events"].delete_many({"seq": last})
    await db["jobs"].update_one({"_id": story.id}, {"$set": {"seq": last - 1, "last_step": 3}})
    await db["positions"].delete_many({})
    async with journal(broker, source="luthier/test/2"):
        assert (await story.tell(make_step(9), attempt=1)).applied
        await until(lambda: emptied(db), what="empty outboxes")
    told = await rows_of(db)
    assert [row["seq"] for row in told] == [row["seq"] for row in rows]
    [row] = [row for row in told if row["seq"] == last]
    assert isinstance(row["body"], dict)
    assert row["body"]["data"]["step"] == 9
