"""What the auditor alarms for: facts that wait too long, and facts that are nowhere."""

from builders.jobs import JobStory
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
