"""What was deleted stays as a document, and costs nobody who looks for what is there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from builders.jobs import ACTOR, OWNED
from builders.lifecycle_deeds import PRINCIPAL
from luthier_api import consumers
from luthier_api.deps import Process
from luthier_api.domain import Page
from luthier_api.settings import ApiSettings
from luthier_api.store import PlatformStore, Repository
from luthier_api.store.filters import JobFilter
from luthier_common.contract import events as f
from luthier_common.contract.ids import new_id
from luthier_common.journal.advance import create
from luthier_common.kit import ledger
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, Doc

NUM_GONE = 300
WALL = {"org": PRINCIPAL.org, "project": PRINCIPAL.project, "end_user": None}
FILE: Doc = {"filename": "train.jsonl", "purpose": "fine-tune", "sha256": "0" * 64, **WALL}
JOB: Doc = {"status": "succeeded", "phase": "succeeded", **WALL}
MODEL: Doc = {"job": "ftjob-1", **WALL}


@pytest.fixture
async def full(db: Database) -> AsyncIterator[Database]:
    """A project where much was deleted and one thing of each kind is left; the database notes what it reads."""
    gone = [f"{number:04}" for number in range(1, NUM_GONE)]
    await db["files"].insert_many([{"_id": f"file-{n}", "phase": "deleted", **FILE} for n in gone])
    await db["jobs"].insert_many([{"_id": f"ftjob-{n}", "deleted": True, **JOB} for n in gone])
    await db["models"].insert_many([{"_id": f"m-{n}", "name": n, "phase": "deleted", **MODEL} for n in gone])
    await db["files"].insert_one({"_id": "file-0000", "phase": "processed", **FILE})
    await db["jobs"].insert_one({"_id": "ftjob-0000", **JOB})
    await db["models"].insert_one({"_id": "m-0000", "name": "left", "phase": "published", **MODEL})
    await db["files"].insert_one({"_id": "file-due", "phase": "deleted", "release_due": True, **FILE})
    await db.command("profile", 2)
    yield db
    await db.command("profile", 0)


async def _num_read(db: Database, look: Awaitable[Any]) -> int:
    """How many documents were read for it."""
    await db.command("profile", 0)
    await db.drop_collection("system.profile")
    await db.command("profile", 2)
    await look
    return sum([row.get("docsExamined", 0) async for row in db["system.profile"].find({})])


def _repository(db: Database, end_user: str | None) -> Repository:
    return Repository(db, replace(PRINCIPAL, end_user=end_user), "req-1")


@pytest.mark.parametrize("end_user", [None, "ann"])
async def test_lists_do_not_read_what_was_deleted(full: Database, end_user: str | None) -> None:
    repository, page = _repository(full, end_user), Page(20)
    succeeded = JobFilter(statuses=("succeeded",)).query(late_by_s=0)
    looks: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("files", lambda: repository.list_files(page, {})),
        ("a page of files", lambda: repository.list_files(Page(20, "file-0200"), {})),
        ("files by their bytes", lambda: repository.list_files(page, {"sha256": FILE["sha256"]})),
        ("a file by its name", lambda: repository.find_file_named(FILE["filename"], "fine-tune")),
        ("jobs", lambda: repository.list_jobs(page, {})),
        ("jobs by status", lambda: repository.list_jobs(page, succeeded)),
        ("models", lambda: repository.list_models(page)),
    ]
    for what, look in looks:
        found = await look()
        assert (found if isinstance(found, dict) else found[0])["_id"].endswith("-0000"), what
        assert await _num_read(full, look()) <= 2, what


async def test_the_sweep_reads_only_what_is_to_be_let_go(full: Database) -> None:
    store = PlatformStore(full, node_ttl_s=30)
    assert await store.find_unreleased_files(500) == ["file-due"]
    assert await _num_read(full, store.find_unreleased_files(500)) == 1


async def test_what_a_project_stores_is_summed_without_reading_its_objects(full: Database) -> None:
    rows = [
        {"_id": f"k{n}", **WALL, "references": ["file/a", "job/b"][: n % 3], "bytes": 10 + n} for n in range(NUM_GONE)
    ]
    await full["objects"].insert_many([*rows, {"_id": "coming", **WALL, "references": ["intent/file/c"]}])
    held = sum(row["bytes"] for row in rows if row["references"])  # type: ignore[misc]
    assert await ledger.count_bytes(full, PRINCIPAL.org, PRINCIPAL.project) == held
    assert await _num_read(full, ledger.count_bytes(full, PRINCIPAL.org, PRINCIPAL.project)) == 0


async def test_an_older_database_gets_the_indexes_of_lists_in_place_of_its_own(db: Database) -> None:
    for name in ("files", "jobs", "models", "nodes"):
        await db[name].create_index([("org", 1), ("project", 1), ("_id", -1)], name="by_owner")
    await db["objects"].create_index([("org", 1), ("project", 1), ("bytes", 1)], name="by_project")
    await db["files"].create_index([("mine", 1)], name="of_an_operator")
    await migrate(db)
    names = {name: set(await db[name].index_information()) for name in ("files", "jobs", "models", "objects")}
    assert not {"by_owner", "by_project"} & set.union(*(names[name] for name in ("jobs", "models", "objects")))
    assert {"listed", "listed_filename", "of_an_operator", "by_owner"} <= names["files"]


async def test_what_fails_in_the_sweep_keeps_nothing_else_from_its_turn(db: Database, tmp_path: Any) -> None:
    """A file that nobody understands comes first; a deleted file's bytes are let go all the same, and so are parts."""
    settings = ApiSettings(mongo_url="mongodb://x", kafka_url="x:1", objects_url="file:///nowhere", home=tmp_path)
    nothing = cast("Any", None)
    process = Process(settings, db, nothing, nothing, nothing, nothing, nothing)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    await db["files"].insert_one({"_id": "file-odd", "phase": "uploaded", "expires_at": past, "outbox": "no list"})
    uploaded = f.FileUploaded(filename="a", bytes=1, sha256="0" * 64, purpose="fine-tune", object_key="k")
    file_id = new_id("file-", datetime.now(UTC))
    await create(db, uploaded, file_id, {**OWNED, "end_user": None, "object_key": "k"}, actor=ACTOR)
    await db["files"].update_one({"_id": file_id}, {"$set": {"phase": "deleted", "release_due": True}})
    await db["objects"].insert_one({"_id": "k", "references": [f"file/{file_id}"]})
    await db["uploads"].insert_one({"_id": "upload_1", "status": "pending", "expires_at": past, "parts": []})
    with pytest.raises(Exception, match="concatArrays"):
        await consumers.sweep(process, "api-1")
    assert (await db["objects"].find_one({"_id": "k"}) or {})["references"] == []
    assert "forget_at" in (await db["uploads"].find_one({"_id": "upload_1"}) or {})
