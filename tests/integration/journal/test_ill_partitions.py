"""One partition that cannot be told to: the others go on, another relay may reach it, and the order stays."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from builders.ill_partitions import WITHOUT_LEADER_S, AnswersLost, Leaderless
from builders.jobs import JobStory, make_step
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.contract.envelope import read_envelope
from luthier_common.contract.topics import TOPICS, Kind, partition_of
from luthier_common.journal import notes, relay
from luthier_common.journal.wake import Wake
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Message, Part, Reader, Writer, ensure_topics

Journal = Callable[..., AbstractAsyncContextManager[None]]
JOBS = TOPICS[Kind.JOB]
ILL = Part(JOBS.name, 0)


async def job_in(db: Database, part: int) -> JobStory:
    """A job whose facts belong on this partition."""
    while partition_of(Kind.JOB, (story := await JobStory.created(db)).id) != part:
        await db["jobs"].delete_one({"_id": story.id})
    return await story.accepted()


async def told(db: Database, story: JobStory) -> list[int]:
    rows = db["events"].find({"kind": "job", "thing": story.id}, {"seq": 1}).sort("seq", 1)
    return [row["seq"] async for row in rows]


async def until_told(db: Database, *stories: JobStory) -> None:
    async def are_told() -> bool:
        return all([await all_told(db, story) for story in stories])

    await until(are_told, what="all facts in the list")


async def all_told(db: Database, story: JobStory) -> bool:
    return await told(db, story) == list(range(1, (await story.doc())["seq"] + 1))


async def test_a_partition_without_a_leader_delays_no_other(
    db: Database, journal: Journal, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "MAX_NOTES", 3)
    monkeypatch.setattr(relay, "MAX_THINGS", 5)
    waiting = [await job_in(db, ILL.partition) for _ in range(12)]  # more than are found at once
    others = [await job_in(db, part) for part in range(1, JOBS.num_partitions)]
    writer = Leaderless(kafka_url, ILL)
    async with journal(kafka_url, writer=writer):
        await until_told(db, *others)
        slowest_s = 0.0
        for number in range(8):
            for story in others:
                began_at_s = time.monotonic()
                assert (await story.tell(f.QueueReasonChanged(reason=f"reason {number}", message="x"))).applied
                await until_told(db, story)
                slowest_s = max(slowest_s, time.monotonic() - began_at_s)
        mine = {"owner": "one", "$expr": {"$gt": ["$until", "$$NOW"]}}
        wanted = {f"relay/job/{part}" for part in range(1, JOBS.num_partitions)}

        async def are_held() -> bool:
            return wanted <= {lease["_id"] async for lease in db["leases"].find(mine)}

        await until(are_held, what="the leases of all other partitions at once")
        assert await told(db, waiting[0]) == []
        assert writer.num_tries > 0
        assert slowest_s < WITHOUT_LEADER_S, "nobody waited until a send to the partition was given up"
        writer.has_leader = True
        await until_told(db, *waiting)


async def test_another_relay_tells_what_one_cannot(db: Database, journal: Journal, kafka_url: str) -> None:
    story = await job_in(db, ILL.partition)
    ill = Leaderless(kafka_url, ILL)
    async with journal(kafka_url, "one", writer=ill):

        async def has_tried() -> int:
            return ill.num_tries

        await until(has_tried, what="a try of the relay that cannot reach it")
        async with journal(kafka_url, "two"):
            await until_told(db, story)


async def test_facts_that_are_sent_again_stay_in_order(db: Database, kafka_url: str) -> None:
    await ensure_topics(kafka_url)
    story = await (await JobStory.created(db)).in_training()
    writer, wake, stopping = AnswersLost(kafka_url), Wake(), asyncio.Event()
    teller = relay.Relay(db, writer, owner="one", source="s", clock=SystemClock())
    telling = asyncio.create_task(relay.run_relay(teller, wake, stopping, lambda: None, idle_s=0.05))

    async def all_are_noted() -> bool:
        return not (await story.doc())["unsent"]

    for step in range(1, 7):
        await story.tell(make_step(step), attempt=1)
        await until(all_are_noted, what="the places of the facts")
    stopping.set()
    await telling
    heard = await heard_of(kafka_url, story)
    firsts = list(dict.fromkeys(heard))
    assert firsts == list(range(1, (await story.doc())["seq"] + 1))
    assert len(heard) > len(firsts), "some were sent again"
    await writer.close()


async def heard_of(url: str, story: JobStory) -> list[int]:
    """The seqs of a job's facts as they lie on the topic, up to its last one."""
    reader, heard = Reader(url), list[int]()
    await reader.seek({Part(JOBS.name, partition_of(Kind.JOB, story.id)): 0})

    async def has_heard_the_last() -> bool:
        batches, _ = await reader.read(wait_ms=200)
        values = [record.value for records in batches.values() for record in records]
        heard.extend(read_envelope(value).seq for value in values if story.id.encode() in value)
        return (await story.doc())["seq"] in heard

    await until(has_heard_the_last, what="the last fact on the topic")
    await reader.close()
    return heard


async def test_a_send_that_fails_does_not_disturb_the_others(kafka_url: str) -> None:
    await ensure_topics(kafka_url)
    writer, message = Writer(kafka_url), Message(b"k", b"v" * 600_000, [])

    async def fail() -> None:
        with pytest.raises(TransientError):
            await writer.send(JOBS.name, 99, [message])

    sends = [writer.send(JOBS.name, part, [message] * 4) for part in range(JOBS.num_partitions)]
    offsets = await asyncio.gather(*sends, fail(), fail())
    await writer.close()
    for stored in offsets[:-2]:
        assert stored is not None
        assert stored == list(range(stored[0], stored[0] + 4))
