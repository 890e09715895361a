"""What is committed is told: relay, topic and projector over an embedded and a real broker."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from builders.jobs import JobStory, make_step
from builders.waiting import until
from builders.wrong_ends import EarlyEnds
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Envelope, read_envelope
from luthier_common.contract.topics import DEAD_LETTERS, TOPICS, Kind, partition_of
from luthier_common.journal import notes, relay
from luthier_common.journal.auditor import audit
from luthier_common.journal.projector import Projector
from luthier_common.journal.wake import Wake, wake_on_change
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Message, Part, Reader, Writer, ensure_topics
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

Journal = Callable[..., AbstractAsyncContextManager[None]]

BROKERS = ["kafka_url", "real_kafka_url"]


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


async def told(db: Database, story: JobStory) -> list[int]:
    rows = db["events"].find({"kind": "job", "thing": story.id}, {"seq": 1}).sort("seq", 1)
    return [row["seq"] async for row in rows]


async def emptied(db: Database) -> bool:
    return await db["jobs"].find_one({"pend": True}, {"_id": 1}) is None


async def test_every_fact_becomes_a_row_in_order_and_leaves_the_outbox(
    db: Database, journal: Journal, broker_url: str
) -> None:
    async with journal(broker_url):
        stories = [await (await JobStory.created(db)).in_training() for _ in range(5)]
        for step in range(1, 11):
            await asyncio.gather(*(story.tell(make_step(step), attempt=1) for story in stories))
        await until(lambda: emptied(db), what="empty outboxes")
        for story in stories:
            doc = await story.doc()
            assert await told(db, story) == list(range(1, doc["seq"] + 1))
            assert (doc["outbox"], doc["unsent"], doc["pend"]) == ([], False, False)
        assert await audit(db, older_than_s=0) == []


async def test_two_journals_share_the_partitions_and_double_nothing(
    db: Database, journal: Journal, broker_url: str
) -> None:
    async with journal(broker_url, "one"), journal(broker_url, "two"):
        stories = [await (await JobStory.created(db)).in_training() for _ in range(8)]
        await until(lambda: emptied(db), what="empty outboxes")
        for story in stories:
            assert await told(db, story) == list(range(1, (await story.doc())["seq"] + 1))


async def test_a_room_without_a_group_hears_new_facts_at_once(db: Database, journal: Journal, broker_url: str) -> None:
    heard: list[Envelope] = []

    async def on_fact(envelope: Envelope) -> None:
        heard.append(envelope)

    broker = build_broker(broker_url, "test")
    hear(broker, [TOPICS[Kind.JOB]], on_fact)
    async with journal(broker_url), listening(broker):
        early = await JobStory.created(db)  # its first facts may be told before the room listens

        async def hears_of(story: JobStory) -> bool:
            await story.tell(f.QueueReasonChanged(reason="x", message="x"))
            return any(envelope.thing == story.id for envelope in heard)

        await until(lambda: hears_of(early), what="a fact of the job that was there before")
        story = await _created_beside(db, early)
        await until(lambda: hears_of(story), what="the job's fact")
        (first, *_) = [envelope for envelope in heard if envelope.thing == story.id]
        assert first.type == "JobCreated"
        assert (first.org, first.project, first.actor.room) == ("org-default", "proj-default", "test")


async def _created_beside(db: Database, other: JobStory) -> JobStory:
    """A job whose facts lie on the partition of the other's."""
    part = partition_of(Kind.JOB, other.id)
    while partition_of(Kind.JOB, (story := await JobStory.created(db)).id) != part:
        pass
    return story


async def test_what_cannot_be_read_goes_to_the_dead_letters_and_blocks_nothing(
    db: Database, journal: Journal, broker_url: str, database_name: str
) -> None:
    heard: list[str] = []

    async def on_fact(envelope: Envelope) -> None:
        heard.append(envelope.thing)

    broker = build_broker(broker_url, "test")
    hear(broker, [TOPICS[Kind.JOB]], on_fact, group=f"group-{database_name}")
    writer = Writer(broker_url)
    async with journal(broker_url), listening(broker):
        story = await JobStory.created(db)
        part = partition_of(Kind.JOB, story.id)
        poison = Message(b"poison", f'{{"no": "{database_name}"}}'.encode(), [("ce_type", b"Nothing")])
        await writer.send(TOPICS[Kind.JOB].name, part, [poison])
        await story.tell(f.JobCancelled(), op_id="c")
        await until(lambda: _heard_twice(heard, story.id), within_s=40, what="both facts of the job")
    reader = Reader(broker_url)
    await reader.seek({Part(DEAD_LETTERS.name, 0): 0})

    async def buried() -> list[bytes]:
        batches, _ = await reader.read(wait_ms=200)
        return [r.value for records in batches.values() for r in records if database_name.encode() in r.value]

    assert await until(buried, what="the dead letter") == [poison.value]
    await reader.close()
    await writer.close()


async def _heard_twice(heard: list[str], thing: str) -> bool:
    return heard.count(thing) >= 2


async def test_a_broker_that_lost_its_log_loses_no_event(db: Database, journal: Journal, tmp_path: Path) -> None:
    settings = StackSettings(home=tmp_path, services=(), servers=("tansu",), kafka_url=None)
    async with Stack(settings) as stack, journal(stack.env["LUTHIER_KAFKA_URL"]):
        before = await (await JobStory.created(db)).in_training()
        await until(lambda: emptied(db), what="empty outboxes")
        stack.kill("tansu", signal.SIGKILL)
        during = await (await JobStory.created(db)).in_training()
        await stack.wait_ready("tansu")
        await before.tell(make_step(1), attempt=1)
        await until(lambda: emptied(db), within_s=40, what="empty outboxes after the loss")
        for story in (before, during):
            assert await told(db, story) == list(range(1, (await story.doc())["seq"] + 1))


async def test_a_wrong_end_of_the_log_does_not_keep_lost_facts_from_being_told_again(
    db: Database, kafka_url: str
) -> None:
    await ensure_topics(kafka_url)
    writer, reader, clock = Writer(kafka_url), EarlyEnds(kafka_url), SystemClock()
    telling = relay.Relay(db, writer, owner="one", source=f"luthier/{db.name}/1", clock=clock)
    projector = Projector(db, reader, owner="one", clock=clock, source=f"luthier/{db.name}/1")
    story = await (await JobStory.created(db)).in_training()
    await until(telling.step, what="the first facts to be sent")
    await telling.release()

    async def projected() -> bool:
        await projector.step()
        return await emptied(db)

    await until(projected, what="the first facts in the list")
    await story.tell(make_step(1), attempt=1)
    lost = {"outbox.$[].offset": 10**9, "outbox.$[].partition": 0, "unsent": False}
    await db["jobs"].update_one({"_id": story.id}, {"$set": lost})

    async def handed_back() -> bool:
        await projector.step()
        return bool((await story.doc())["unsent"])

    await until(handed_back, what="the lost fact to be handed back to the relay")
    await until(telling.step, what="the lost fact to be sent again")
    await telling.release()
    await until(projected, what="the lost fact in the list")
    assert await told(db, story) == list(range(1, (await story.doc())["seq"] + 1))
    await writer.close()
    await reader.close()


async def test_what_gathered_while_the_broker_was_away_is_told_in_several_passes(
    db: Database, journal: Journal, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_FACTS", 7)
    stories = [await (await JobStory.created(db)).in_training() for _ in range(4)]
    for story in stories:
        assert (await story.tell(*(make_step(step) for step in range(1, 31)), attempt=1)).applied
    async with journal(kafka_url):
        await until(lambda: emptied(db), what="empty outboxes")
    for story in stories:
        assert await told(db, story) == list(range(1, (await story.doc())["seq"] + 1))


async def test_a_relay_without_leases_publishes_nothing_and_takes_over_when_they_are_released(
    db: Database, kafka_url: str
) -> None:
    await ensure_topics(kafka_url)
    writer = Writer(kafka_url)
    one, two = (relay.Relay(db, writer, owner=name, source="s", clock=SystemClock()) for name in ("one", "two"))
    assert await one.step() == 0
    await JobStory.created(db)
    assert await two.step() == 0
    await one.release()
    await until(two.step, within_s=5, what="the second relay to take over")
    await two.release()
    await writer.close()


async def test_a_second_fact_is_told_at_once_and_the_first_only_once_while_no_place_is_noted(
    db: Database, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "WRITE_AFTER_S", 60.0)
    await ensure_topics(kafka_url)
    writer, reader, wake, stopping = Writer(kafka_url), Reader(kafka_url), Wake(), asyncio.Event()
    teller = relay.Relay(db, writer, owner="one", source="s", clock=SystemClock())
    telling = asyncio.create_task(relay.run_relay(teller, wake, stopping, lambda: None, idle_s=60.0))
    watching = asyncio.create_task(wake_on_change(db, wake))
    story = await JobStory.created(db)
    await reader.seek({Part(TOPICS[Kind.JOB].name, partition_of(Kind.JOB, story.id)): 0})
    heard: list[int] = []

    async def has_told(seq: int) -> bool:
        batches, _ = await reader.read(wait_ms=50)
        values = (record.value for records in batches.values() for record in records)
        heard.extend(read_envelope(value).seq for value in values if story.id.encode() in value)
        return seq in heard

    wake.set()  # the change stream may not have been there yet
    await until(lambda: has_told(1), what="the first fact")
    await story.accepted()
    await until(lambda: _is_told_after(story, has_told), what="the second fact")
    assert heard == list(range(1, max(heard) + 1))
    assert (await story.doc())["outbox"][0]["offset"] is None
    stopping.set()
    wake.set()
    await telling
    assert [entry["offset"] for entry in (await story.doc())["outbox"]].count(None) == 0
    watching.cancel()
    await writer.close()
    await reader.close()


async def _is_told_after(story: JobStory, has_told: Callable[[int], Awaitable[bool]]) -> bool:
    """Whether a fact that is stated now is told soon, by the change stream alone."""
    seq = (await story.doc())["seq"] + 1
    assert (await story.tell(f.QueueReasonChanged(reason=f"reason {seq}", message="x"))).applied
    for _ in range(40):
        if await has_told(seq):
            return True
    return False


async def test_a_projector_whose_position_was_taken_over_goes_on_when_it_is_free(
    db: Database, journal: Journal, kafka_url: str
) -> None:
    async with journal(kafka_url):
        story = await JobStory.created(db)
        await until(lambda: emptied(db), what="empty outboxes")
        name = f"{TOPICS[Kind.JOB].name}/{partition_of(Kind.JOB, story.id)}"
        soon = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": 3}}
        taken = {"owner": "other", "epoch": {"$add": ["$epoch", 1]}, "until": soon}
        before = await db["positions"].find_one_and_update({"_id": name}, [{"$set": taken}])
        await story.tell(f.JobCancelled(), op_id="c")
        await until(lambda: emptied(db), what="empty outboxes")
        assert await told(db, story) == [1, 2]

        async def is_ours() -> bool:
            beyond = {"_id": name, "owner": "one", "offset": {"$gt": (before or {})["offset"]}}
            return await db["positions"].find_one(beyond) is not None

        await until(is_ours, what="the position to be taken back")


async def test_a_filled_outbox_wakes_the_relay_and_other_writes_do_not(db: Database) -> None:
    wake = Wake()
    watching = asyncio.create_task(wake_on_change(db, wake))
    last = (Kind.MODEL, partition_of(Kind.MODEL, "last"))
    try:

        async def is_watching() -> bool:
            await JobStory.created(db)
            return wake.is_set()

        async def has_told_the_last() -> bool:
            return last in wake.take()

        await until(is_watching, within_s=10, every_s=0.2, what="the change stream")
        await db["models"].insert_one({"_id": "last"})
        await until(has_told_the_last, what="what was written before")
        await db["events"].insert_one({"_id": "job/x/1", "kind": "job", "thing": "x", "seq": 1})
        await db["leases"].insert_one({"_id": "some"})
        story = await JobStory.created(db)
        await asyncio.wait_for(wake.wait(), 2.0)
        assert wake.take() == {(Kind.JOB, partition_of(Kind.JOB, story.id)): {story.id}}
    finally:
        watching.cancel()
