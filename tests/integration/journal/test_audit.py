"""What the auditor alarms for: facts that wait too long, and facts that are nowhere."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from builders.jobs import JobStory
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.contract.topics import Kind
from luthier_common.journal.auditor import Finding, audit
from luthier_common.kit.mongo import Database, Doc

Journal = Callable[..., AbstractAsyncContextManager[None]]


async def test_late_facts_and_holes_are_told_apart(db: Database) -> None:
    whole, holed = await JobStory.created(db), await (await JobStory.created(db)).accepted()
    seq = (await holed.doc())["seq"]
    rows = [{"_id": f"job/{holed.id}/{n}", "kind": "job", "thing": holed.id, "seq": n} for n in range(1, seq)]
    await db["events"].insert_many(rows)
    await db["jobs"].update_one({"_id": holed.id}, {"$set": {"outbox": [], "pend": False, "unsent": False}})
    found = await audit(db, older_than_s=-1)
    assert Finding(Kind.JOB, whole.id, "late", (1,)) in found
    assert Finding(Kind.JOB, holed.id, "hole", (seq,)) in found
    assert len(found) == 2


async def test_looking_for_holes_reads_by_an_index(db: Database) -> None:
    since = {"$subtract": ["$$NOW", 1000]}
    plan = await db.command(
        {"explain": {"find": "jobs", "filter": {"$expr": {"$and": [{"$gt": ["$updated_at", since]}]}}}}
    )
    assert "IXSCAN" in str(plan["queryPlanner"]["winningPlan"])


async def test_what_was_found_whole_is_passed_over_until_it_changes(db: Database) -> None:
    story = await listed(await JobStory.created(db))
    assert await audit(db, older_than_s=-1) == []
    await db["events"].delete_one({"_id": f"job/{story.id}/1"})
    assert await audit(db, older_than_s=-1) == []
    await story.tell(f.JobCancelled(), op_id="c")
    await listed(story, 2)
    assert await audit(db, older_than_s=-1) == [Finding(Kind.JOB, story.id, "hole", (1,))]
    assert await audit(db, older_than_s=-1) == [Finding(Kind.JOB, story.id, "hole", (1,))], "alarmed until it is mended"


async def test_what_still_waits_is_not_taken_for_whole(db: Database) -> None:
    story = await JobStory.created(db)
    assert await audit(db, older_than_s=3600) == []
    assert [found.what for found in await audit(db, older_than_s=-1)] == ["late"]
    await db["jobs"].update_one({"_id": story.id}, {"$set": {"outbox": [], "pend": False, "unsent": False}})
    assert await audit(db, older_than_s=-1) == [Finding(Kind.JOB, story.id, "hole", (1,))]


async def test_looking_for_what_is_late_reads_by_an_index(db: Database) -> None:
    query = {"part": {"$gte": 0}, "pend": True}
    plan = await db.command({"explain": {"find": "jobs", "filter": query}})
    assert "'indexName': 'pend'" in str(plan["queryPlanner"]["winningPlan"])


async def test_a_fact_that_is_not_what_the_list_holds_under_its_number_stays_and_is_alarmed_for(
    db: Database, journal: Journal, kafka_url: str
) -> None:
    stories = [await JobStory.created(db) for _ in range(2)]
    [told_again, other] = stories
    entries = [(await story.doc())["outbox"][0] for story in stories]

    async def is_trimmed(story: JobStory) -> bool:
        return (await story.doc())["outbox"] == []

    async def put_back(story: JobStory, entry: Doc) -> None:
        """As if the projector had been killed between its row and the trim."""
        row = await db["events"].find_one({"_id": f"job/{story.id}/1"})
        assert row is not None
        place = {"partition": row["partition"], "offset": row["offset"]}
        await db["jobs"].update_one({"_id": story.id}, {"$set": {"outbox": [entry | place], "pend": True}})

    async with journal(kafka_url):
        for story in stories:
            await until(lambda story=story: is_trimmed(story), what="an empty outbox")
        await put_back(other, entries[1] | {"data": entries[1]["data"] | {"seq": "another"}})
        for _ in range(2):  # the first look may have begun before
            await put_back(told_again, entries[0])
            await until(lambda: is_trimmed(told_again), what="an empty outbox again")
        assert not await is_trimmed(other)
        assert [found.what for found in await audit(db, older_than_s=-1)] == ["late"]


async def listed(story: JobStory, *seqs: int) -> JobStory:
    """The job's facts (these, or its first) have their rows, and nothing waits."""
    rows = [{"_id": f"job/{story.id}/{n}", "kind": "job", "thing": story.id, "seq": n} for n in seqs or (1,)]
    await story.db["events"].insert_many(rows)
    told = {"outbox": [], "pend": False, "unsent": False}
    await story.db["jobs"].update_one({"_id": story.id}, {"$set": told})
    return story
