"""A process that dies between storing bytes and saying whose they are leaves nothing for ever, and loses nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import openai
import pytest

from integration.api.conftest import Api, run_api
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database, open_mongo
from luthier_common.kit.objects import ObjectStore, open_objects

CONTENT = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
Start = Callable[[str], AbstractAsyncContextManager[Api]]


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """The store of the apis that `run` starts."""
    async with open_objects(f"file://{tmp_path}/objects") as store:
        yield store


async def sweep(db: Database, objects: ObjectStore) -> None:
    await ledger.sweep(db, objects, older_than_s=-1)


async def lapse(db: Database) -> None:
    """Let all deadlines pass."""
    over = {"intent_until": {"$subtract": ["$$NOW", 1]}}
    await db["objects"].update_many({"intent_until": {"$type": "date"}}, [{"$set": over}])


async def keys(objects: ObjectStore) -> list[str]:
    return [info.key async for info in objects.list()]


@pytest.fixture
async def database(mongo_url: str, database_name: str) -> AsyncIterator[Database]:
    async with open_mongo(mongo_url, database_name) as db:
        yield db


@pytest.fixture
def start(mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int], database_name: str) -> Start:
    """Starts an api process that breaks at the fail points named; a later one goes on where it left."""

    def run(failpoints: str) -> AbstractAsyncContextManager[Api]:
        env = {"LUTHIER_FAILPOINTS": failpoints}
        return run_api(mongo_url, kafka_url, tmp_path, free_port(), database_name, env)

    return run


@pytest.mark.parametrize("moment", ["api.after_put", "api.after_keep"])
async def test_bytes_of_a_file_that_was_never_made_go_when_the_deadline_has_passed(
    start: Start, database: Database, objects: ObjectStore, moment: str
) -> None:
    async with start(f"{moment}=kill") as api:
        with pytest.raises(openai.APIConnectionError):
            await api.sdk().files.create(file=("a.jsonl", CONTENT), purpose="fine-tune")
        assert len(await keys(objects)) == 1
        await sweep(database, objects)
        assert len(await keys(objects)) == 1, "before the deadline the writer may still be at work"
        await lapse(database)
        await sweep(database, objects)
        assert await keys(objects) == []
        assert await database["objects"].count_documents({}) == 0
        assert await database["files"].count_documents({}) == 0


async def test_a_part_that_was_stored_and_never_added_goes(
    start: Start, database: Database, objects: ObjectStore
) -> None:
    async with start("api.after_keep=kill") as api:
        sdk = api.sdk()
        upload = await sdk.uploads.create(bytes=9, filename="a", mime_type="text/plain", purpose="user_data")
        with pytest.raises(openai.APIConnectionError):
            await sdk.uploads.parts.create(upload.id, data=CONTENT)
        assert len(await keys(objects)) == 1
        await lapse(database)
        await sweep(database, objects)
        assert await keys(objects) == []


async def test_a_kill_after_completing_loses_no_file_and_makes_no_second_one(
    start: Start, database: Database, objects: ObjectStore
) -> None:
    async with start("uploads.after_completed=kill") as api:
        sdk = api.sdk()
        wanted = {"bytes": len(CONTENT), "filename": "a", "mime_type": "text/plain"}
        upload = await sdk.uploads.create(**wanted, purpose="fine-tune")  # type: ignore[arg-type]
        part = await sdk.uploads.parts.create(upload.id, data=CONTENT)
        with pytest.raises(openai.APIConnectionError):
            await sdk.uploads.complete(upload.id, part_ids=[part.id])
        await lapse(database)
        await sweep(database, objects)
        async with start("") as again:
            done = await again.sdk().uploads.complete(upload.id, part_ids=[part.id])
            assert done.file is not None
            await lapse(database)
            await sweep(database, objects)
            assert (await again.sdk().files.content(done.file.id)).content == CONTENT
            assert [file.id for file in (await again.sdk().files.list()).data] == [done.file.id]
            assert len(await keys(objects)) == 1


async def test_a_file_that_was_made_keeps_its_bytes_when_its_deadline_passes(
    start: Start, database: Database, objects: ObjectStore
) -> None:
    async with start("") as api:
        file = await api.sdk().files.create(file=("a.jsonl", CONTENT), purpose="fine-tune")
        await lapse(database)
        await sweep(database, objects)
        assert (await api.sdk().files.content(file.id)).content == CONTENT
        assert await database["objects"].count_documents({"intent_until": {"$exists": True}}) == 0
        await api.sdk().files.delete(file.id)
        await sweep(database, objects)
        assert await keys(objects) == []
