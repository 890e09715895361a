"""What the auditor alarms for: facts that wait too long, and facts that are nowhere."""

from builders.jobs import JobStory
from luthier_common.contract import events as f
from luthier_common.contract.topics import Kind
from luthier_common.journal.auditor import Finding, audit
from luthier_common.kit.mongo import Database


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


async def listed(story: JobStory, *seqs: int) -> JobStory:
    """The job's facts (these, or its first) have their rows, and nothing waits."""
    rows = [{"_id": f"job/{story.id}/{n}", "kind": "job", "thing": story.id, "seq": n} for n in seqs or (1,)]
    await story.db["events"].insert_many(rows)
    told = {"outbox": [], "pend": False, "unsent": False}
    await story.db["jobs"].update_one({"_id": story.id}, {"$set": told})
    return story
