"""What a crash leaves in the ledger lapses; what is in use stays."""

from datetime import UTC, datetime
from pathlib import Path

from builders.jobs import JobStory, make_spec
from luthier_common.contract import events as f
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import open_objects

KEY = "org-default/proj-default/files/file-1"


async def test_a_reference_by_a_job_that_was_never_made_lapses_and_one_by_a_job_stays(
    db: Database, tmp_path: Path
) -> None:
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        await objects.put(KEY, b"rows")
        await ledger.record(db, KEY, sha256="0" * 64, num_bytes=4, org="o", project="p", reference="file/file-1")
        made = await JobStory.created(db)
        for reference in (f"job/{made.id}", "job/ftjob-neverwas"):
            assert await ledger.refer(db, KEY, reference, is_made_later=True)
        await ledger.release(db, "file/file-1")
        await ledger.sweep(db, objects, older_than_s=0)
        assert await references(db) == {f"job/{made.id}", "job/ftjob-neverwas"}
        await _deadlines_pass(db)
        await ledger.sweep(db, objects, older_than_s=0)
        assert await references(db) == {f"job/{made.id}"}
        assert await objects.head(KEY) is not None


async def test_what_is_stored_late_for_a_job_that_was_deleted_meanwhile_goes_again(
    db: Database, tmp_path: Path
) -> None:
    """A room was held up between its look at the job and its note."""
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        story = await JobStory.created(db)
        await story.tell(f.JobCancelled(), op_id="cancel")
        await story.tell(f.JobDeleted(), op_id="delete")
        await ledger.release(db, f"job/{story.id}")
        await ledger.record(db, KEY, sha256="0" * 64, num_bytes=4, org="o", project="p", reference=f"job/{story.id}")
        await objects.put(KEY, b"late")
        await ledger.sweep(db, objects, older_than_s=0)
        assert await references(db) == {f"job/{story.id}"}, "who notes first and makes the thing then has time to"
        await _deadlines_pass(db)
        await ledger.sweep(db, objects, older_than_s=0)
        assert await objects.head(KEY) is None


async def test_what_lies_beside_a_file_stays_as_long_as_the_file_does(db: Database, tmp_path: Path) -> None:
    report = f"{KEY}.report.json"
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        await db["files"].insert_one({"_id": "file-1", "object_key": KEY})
        await ledger.record(db, report, sha256="0" * 64, num_bytes=2, org="o", project="p", reference="file/file-1")
        await objects.put(report, b"{}")
        await _deadlines_pass(db)
        await ledger.sweep(db, objects, older_than_s=0)
        await ledger.sweep(db, objects, older_than_s=0)
        assert await objects.head(report) is not None
        await ledger.release(db, "file/file-1")
        await ledger.sweep(db, objects, older_than_s=-1)
        assert await objects.head(report) is None


async def test_a_file_that_was_deleted_keeps_nothing_that_was_referred_to_for_it_late(
    db: Database, tmp_path: Path
) -> None:
    """The registry makes a job's files again after a crash, and their user was quicker."""
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        await db["files"].insert_one({"_id": "file-1", "object_key": KEY, "phase": "deleted"})
        await ledger.record(db, KEY, sha256="0" * 64, num_bytes=4, org="o", project="p", reference="registering/job")
        await ledger.refer(db, KEY, "file/file-1", is_made_later=True)
        await _deadlines_pass(db)
        await ledger.sweep(db, objects, older_than_s=0)
        assert await references(db) == {"registering/job"}


async def test_a_files_bytes_are_kept_once_for_all_its_jobs_and_until_the_last_is_deleted(
    db: Database, tmp_path: Path
) -> None:
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        await objects.put(KEY, b"rows")
        await ledger.record(db, KEY, sha256="0" * 64, num_bytes=4, org="o", project="p", reference="file/file-1")
        stories = []
        for spec in (make_spec(training_file="file-1"), make_spec(validation_file="file-1")):
            assert await ledger.refer(db, KEY, "jobs/file-1", is_made_later=True)
            stories.append(await JobStory.created(db, spec=spec))
        await ledger.release(db, "file/file-1")
        for story, kept in zip(stories, ({"jobs/file-1"}, set()), strict=True):
            await _deadlines_pass(db)
            await ledger.sweep(db, objects, older_than_s=3600)
            assert await references(db) == {"jobs/file-1"}, "one of them is there"
            await story.tell(f.JobCancelled(), op_id="cancel")
            await story.tell(f.JobDeleted(), op_id="delete")
            await ledger.release_files(db, ["file-1"])
            assert await references(db) == kept
        await ledger.sweep(db, objects, older_than_s=-1)
        assert await objects.head(KEY) is None


async def test_the_last_jobs_deletion_takes_nothing_from_one_that_is_being_made(db: Database, tmp_path: Path) -> None:
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        await ledger.record(db, KEY, sha256="0" * 64, num_bytes=4, org="o", project="p", reference="file/file-1")
        await ledger.refer(db, KEY, "jobs/file-1", is_made_later=True)
        await ledger.release(db, "file/file-1")
        await ledger.release_files(db, ["file-1"])
        assert await references(db) == {"jobs/file-1"}
        await _deadlines_pass(db)
        await ledger.sweep(db, objects, older_than_s=3600)
        assert await references(db) == set(), "it was never made"


async def _deadlines_pass(db: Database) -> None:
    past = {"$set": {"intent_until": datetime(2020, 1, 1, tzinfo=UTC)}}
    await db[ledger.COLLECTION].update_many({"intent_until": {"$type": "date"}}, past)


async def references(db: Database) -> set[str]:
    row = await db[ledger.COLLECTION].find_one({"_id": KEY})
    return set(row["references"]) if row else set()
