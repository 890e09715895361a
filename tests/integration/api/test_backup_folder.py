"""A backup holds the database of one instant and every object that is referred to, and comes back as it was."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aioboto3
import pytest
from moto.server import ThreadedMotoServer

from builders.jobs import JobStory, make_step
from luthier_api.backup import MANIFEST, BackupError, create, restore, verify
from luthier_common.kit import ledger
from luthier_common.kit.dump import dump_collection, one_moment, read_documents
from luthier_common.kit.migrate import incarnation, migrate
from luthier_common.kit.mongo import Database, Doc, open_mongo
from luthier_common.kit.objects import ObjectStore, S3Access, open_objects

OWNED = {"org": "org-default", "project": "proj-default"}
BUCKET = "luthier-backup"


@asynccontextmanager
async def empty_database(mongo_url: str, name: str) -> AsyncIterator[Database]:
    async with open_mongo(mongo_url, name) as db:
        yield db
        await db.client.drop_database(name)


async def things(db: Database) -> dict[str, list[Doc]]:
    """Every document but those that a restore gives up; outboxes without the places that it forgets."""
    found: dict[str, list[Doc]] = {}
    for name in ("jobs", "files", "objects", "api_keys", "orgs", "projects"):
        found[name] = await db[name].find({}).sort("_id", 1).to_list(None)
    return found


async def store_object(db: Database, objects: ObjectStore, key: str, content: bytes, reference: str) -> None:
    stored = await objects.put(key, content)
    await ledger.record(db, key, sha256=stored.sha256, num_bytes=stored.bytes, reference=reference, **OWNED)


async def fill(db: Database, objects: ObjectStore) -> JobStory:
    """A running job, a file, a model's directory; and bytes that nobody refers to."""
    story = await (await JobStory.created(db)).in_training()
    await story.tell(make_step(1), attempt=1)
    await store_object(db, objects, "org-default/files/one", b"rows" * 1000, "file/file-1")
    await ledger.record(db, "org-default/models/m/", sha256="0" * 64, num_bytes=2, reference="model/ftmodel-1", **OWNED)
    await objects.put("org-default/models/m/adapter.safetensors", b"weights")
    await objects.put("org-default/models/m/manifest.json", b"{}")
    await objects.put("org-default/files/litter", b"left by a crash")
    await ledger.intend(db, "org-default/files/coming", reference="file/file-2", within_s=60, **OWNED)
    await db["api_keys"].insert_one({"_id": "k1", "digest": b"\x00\x01", "org": "org-default"})
    return story


@pytest.fixture(params=["file", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "file":
        async with open_objects(f"file://{tmp_path}/store") as store:
            yield store
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = S3Access(f"http://{host}:{port}", "us-east-1", "test", "test-secret")
    session = aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test-secret")
    async with session.client("s3", endpoint_url=access.endpoint_url, region_name=access.region) as client:
        await client.create_bucket(Bucket=BUCKET)
    async with open_objects(f"s3://{BUCKET}/luthier", access) as store:
        yield store
    server.stop()


async def test_what_was_there_comes_back_and_is_told_under_a_new_incarnation(
    db: Database, mongo_url: str, objects: ObjectStore, tmp_path: Path
) -> None:
    story = await fill(db, objects)
    before = await things(db)
    made = await create(db, objects, tmp_path / "backup")
    assert made.missing == ()
    async with (
        empty_database(mongo_url, f"{db.name}_restored") as other,
        open_objects(f"file://{tmp_path}/other") as target,
    ):
        await migrate(other)
        restored = await restore(other, target, tmp_path / "backup")
        assert await things(other) == before
        assert restored.incarnation == await incarnation(other) > await incarnation(db)
        assert {info.key async for info in target.list()} == {
            "org-default/files/one",
            "org-default/models/m/adapter.safetensors",
            "org-default/models/m/manifest.json",
        }
        assert await target.read("org-default/files/one") == b"rows" * 1000
        assert (await JobStory(other, story.id).tell(make_step(2), attempt=1)).applied
        with pytest.raises(BackupError, match="not empty"):
            await restore(other, target, tmp_path / "backup")


async def test_facts_that_had_a_place_on_the_former_topics_are_told_again(
    db: Database, mongo_url: str, tmp_path: Path
) -> None:
    story = await JobStory.created(db)
    noted = {"outbox.0.partition": 1, "outbox.0.offset": 77, "unsent": False}
    await db["jobs"].update_one({"_id": story.id}, {"$set": noted})
    await db["positions"].insert_one({"_id": "luthier.job-events.v1/1", "offset": 77})
    async with (
        open_objects(f"file://{tmp_path}/store") as objects,
        open_objects(f"file://{tmp_path}/other") as target,
        empty_database(mongo_url, f"{db.name}_restored") as other,
    ):
        await create(db, objects, tmp_path / "backup")
        await restore(other, target, tmp_path / "backup")
        doc = await JobStory(other, story.id).doc()
        assert (doc["unsent"], doc["outbox"][0]["partition"], doc["outbox"][0]["offset"]) == (True, None, None)
        assert await other["positions"].count_documents({}) == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no backup": lambda folder: (folder / MANIFEST).unlink(),
    "jobs is damaged": lambda folder: flip(folder / "collections" / "jobs.bson"),
    "files/one is damaged": lambda folder: flip(folder / "objects" / "org-default" / "files" / "one"),
    "not whole": lambda folder: (folder / "objects" / "org-default" / "files" / "one").unlink(),
    "objects.jsonl is damaged": lambda folder: flip(folder / "objects.jsonl"),
    "no complete backup": shutil.rmtree,
}


@pytest.mark.parametrize("told", DAMAGES)
async def test_a_damaged_backup_is_refused_before_anything_is_written(
    told: str, db: Database, mongo_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    async with (
        open_objects(f"file://{tmp_path}/store") as objects,
        open_objects(f"file://{tmp_path}/other") as target,
        empty_database(mongo_url, f"{db.name}_restored") as other,
    ):
        await fill(db, objects)
        await create(db, objects, folder)
        await verify(folder)
        DAMAGES[told](folder)
        with pytest.raises(BackupError, match="backup" if told.startswith("no ") else told):
            await restore(other, target, folder)
        assert await other.list_collection_names() == []
        assert [info async for info in target.list()] == []


async def test_nothing_is_written_into_a_folder_or_a_store_that_is_in_use(
    db: Database, mongo_url: str, tmp_path: Path
) -> None:
    async with (
        open_objects(f"file://{tmp_path}/store") as objects,
        empty_database(mongo_url, f"{db.name}_restored") as other,
    ):
        await fill(db, objects)
        await create(db, objects, tmp_path / "backup")
        with pytest.raises(BackupError, match="is not empty"):
            await create(db, objects, tmp_path / "backup")
        with pytest.raises(BackupError, match="the object store is not empty"):
            await restore(other, objects, tmp_path / "backup")


async def test_lost_and_damaged_objects_are_named_and_the_rest_is_kept(db: Database, tmp_path: Path) -> None:
    async with open_objects(f"file://{tmp_path}/store") as objects:
        await fill(db, objects)
        await store_object(db, objects, "org-default/files/lost", b"x", "file/file-3")
        await objects.delete("org-default/files/lost")
        await objects.put("org-default/files/one", b"other bytes")
        made = await create(db, objects, tmp_path / "backup")
        assert set(made.missing) == {"org-default/files/lost", "org-default/files/one"}
        await verify(tmp_path / "backup")


async def test_what_is_written_while_a_backup_is_made_is_not_in_it(db: Database, tmp_path: Path) -> None:
    first = await JobStory.created(db)
    async with one_moment(db) as session:
        await dump_collection(db, "files", tmp_path / "files.bson", session)
        await JobStory.created(db)
        await first.accepted()
        await dump_collection(db, "jobs", tmp_path / "jobs.bson", session)
    assert [(job["_id"], job["seq"]) for job in read_documents(tmp_path / "jobs.bson")] == [(first.id, 1)]
