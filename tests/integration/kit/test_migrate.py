"""The migration of a large database of an older version, while that version still runs."""

import asyncio
import os
import sys
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import monitoring

from luthier_common.kit.migrate import INDEXES, migrate
from luthier_common.kit.mongo import Database, Doc

WALL = {"org": "org-1", "project": "proj-1"}


class _Asked(monitoring.CommandListener):
    """What a client asks of the server."""

    def __init__(self) -> None:
        self.commands: list[Doc] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.commands.append(dict(event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


async def test_an_index_may_take_as_long_as_it_takes(mongo_url: str, database_name: str) -> None:
    """The server would end a build after the client's time, at each try again."""
    asked = _Asked()
    client: Any = AsyncIOMotorClient(mongo_url, timeoutMS=30_000, event_listeners=[asked])
    await migrate(client[database_name])
    await client.drop_database(database_name)
    client.close()
    built = [command for command in asked.commands if "createIndexes" in command]
    assert {command["createIndexes"] for command in built} == set(INDEXES)
    assert not [command for command in built if "maxTimeMS" in command]
    assert [command for command in asked.commands if "maxTimeMS" in command], "everything else has its time"


async def test_the_version_before_still_finds_a_projects_files_without_reading_others(db: Database) -> None:
    """While it is being replaced, and when it has to come back."""
    await db["files"].create_index([("org", 1), ("project", 1), ("_id", -1)], name="by_owner")
    await migrate(db)
    await db["files"].insert_many([{**WALL, "_id": f"file-{n}", "phase": "processed"} for n in range(300)])
    looked = db["files"].find({**WALL, "project": "proj-empty", "phase": {"$ne": "deleted"}}).sort("_id", -1)
    assert (await looked.explain())["executionStats"]["totalDocsExamined"] == 0


async def test_an_operator_reads_in_one_line_why_the_migration_ended(db: Database, mongo_url: str) -> None:
    for name in ("unsent", "by_expiry"):
        await db["files"].drop_index(name)
    await db["files"].create_index([("mine", 1)], name="by_expiry")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")} | {
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": db.name,
        "LUTHIER_KAFKA_URL": "127.0.0.1:1",
        "LUTHIER_OBJECTS_URL": "file:///unused",
        "LUTHIER_LOG_FORMAT": "text",
    }
    words = ("-m", "luthier_common.kit.migrate")
    process = await asyncio.create_subprocess_exec(sys.executable, *words, env=env, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    told = (out + err).decode()
    assert process.returncode == 1
    assert "not migrated: MongoDB ended it (IndexKeySpecsConflict)" in told
    assert "building indexes of files: unsent" in told
    assert "Traceback" not in told
