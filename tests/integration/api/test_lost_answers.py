"""A verb whose write was made though its answer never came is neither refused nor made twice."""

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from builders.jobs import ACTOR, OWNED, JobStory
from builders.lifecycle_deeds import PRINCIPAL, SETTINGS, Rooms
from builders.losing_driver import lose_next, losing_driver
from luthier_api.services.files import FileService
from luthier_api.store import Repository
from luthier_api.transfers import Downloads
from luthier_common.contract import events as f
from luthier_common.journal.advance import create
from luthier_common.kit import ledger
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import open_objects


@pytest.fixture
async def story(db: Database) -> AsyncIterator[JobStory]:
    with losing_driver():
        yield await (await JobStory.created(db)).accepted()


async def told(story: JobStory) -> list[str]:
    return [entry["type"] for entry in (await story.doc())["outbox"]][2:]


async def test_a_pause_and_a_resume_are_done_once(db: Database, story: JobStory) -> None:
    jobs = Rooms(db, story.id, Random(1)).api
    lose_next(1)
    assert (await jobs.pause(story.id))["status"] == "paused"
    lose_next(1)
    assert (await jobs.resume(story.id))["status"] == "queued"
    lose_next(1)
    assert (await jobs.cancel(story.id))["status"] == "cancelled"
    assert await told(story) == ["DataAccepted", "JobPaused", "JobResumed", "JobCancelled"]


async def test_a_reason_to_wait_is_told_once(db: Database, story: JobStory) -> None:
    scheduler = Rooms(db, story.id, Random(1)).scheduler
    lose_next(1)
    assert (await scheduler.tell_reason(story.id, f.QueueReasonChanged(reason="x", message="x"))).done
    assert await told(story) == ["DataAccepted", "QueueReasonChanged"]


async def test_a_file_whose_deletion_was_not_answered_is_gone_with_its_bytes(db: Database, tmp_path: Path) -> None:
    async with open_objects(f"file://{tmp_path}") as objects:
        await objects.put("files/one", b"rows")
        fact = f.FileUploaded(filename="rows", bytes=4, sha256="0" * 64, purpose="fine-tune", object_key="files/one")
        await create(db, fact, "file-one", {**OWNED, **fact.model_dump(mode="json")}, actor=ACTOR)
        await ledger.record(
            db, "files/one", sha256="0" * 64, num_bytes=4, org="o", project="p", reference="file/file-one"
        )
        with losing_driver("files"):
            lose_next(1)
            files = FileService(
                Repository(db, PRINCIPAL, "req-test"), db, objects, SystemClock(), SETTINGS, Downloads(1)
            )
            assert await files.delete("file-one") == "file-one"
    row = await db[ledger.COLLECTION].find_one({"_id": "files/one"})
    assert row is not None
    assert row["references"] == []
