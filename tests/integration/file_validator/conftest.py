"""A validator's loops over real servers, and uploads as the api makes them."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from builders.bases import make_tiny_base
from builders.jobs import ACTOR, OWNED
from luthier_common.contract.events import FileUploaded
from luthier_common.journal.advance import create
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_file_validator.checker import Checker
from luthier_file_validator.files import FileLoop
from luthier_file_validator.jobs import JobLoop
from luthier_file_validator.settings import FileValidatorSettings
from luthier_file_validator.store import Store
from luthier_file_validator.workers import Workers


class Validator:
    """Both loops of one instance, looked at when a test says so."""

    def __init__(self, files: FileLoop, jobs: JobLoop) -> None:
        self.files = files
        self.jobs = jobs

    async def look(self) -> None:
        await self.files.look()
        await self.jobs.look()


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    async with open_objects(f"file://{tmp_path}/objects") as store:
        yield store


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture
async def base(db: Database, objects: ObjectStore, tiny_base: Path) -> str:
    manifest = json.loads((tiny_base / "bundle.json").read_text())
    key = f"bases/{manifest['digest']}/"
    for file in manifest["files"]:
        await objects.upload(tiny_base / file["name"], key + file["name"])
    entry = {"digest": manifest["digest"], "key": key, "files": manifest["files"], "aliases": [], "context_length": 256}
    await db["bases"].insert_one({"_id": "tiny", **entry})
    return "tiny"


@pytest.fixture
async def make_validator(db: Database, objects: ObjectStore, tmp_path: Path) -> AsyncIterator[Callable[..., Validator]]:
    async with AsyncExitStack() as open_workers:

        async def make(**changes: Any) -> Validator:
            values = {"mongo_url": "mongodb://unused", "kafka_url": "unused", "objects_url": "file:///unused"}
            settings = FileValidatorSettings(
                **values, home=tmp_path / "home", default_base="tiny", internal_token=SecretStr(""), **changes
            )
            store = Store(db, objects)
            checker = Checker(store, settings)
            checker.prepare()
            owner = secrets.token_hex(4)
            workers = [
                Workers(db, SystemClock(), owner, asyncio.Event(), claim_ttl_s=settings.claim_ttl_s, limit=2)
                for _ in range(2)
            ]
            for each in workers:
                await open_workers.enter_async_context(each.closing())
            files = FileLoop(store, checker, workers[0], settings.default_base)
            return Validator(files, JobLoop(store, checker, workers[1], settings))

        yield make


@pytest.fixture
def upload(db: Database, objects: ObjectStore) -> Callable[..., Any]:
    async def upload_bytes(content: bytes, purpose: str = "fine-tune") -> str:
        file_id = f"file-{secrets.token_hex(12)}"
        key = f"{OWNED['org']}/{OWNED['project']}/files/{file_id}"
        await objects.put(key, content)
        fact = FileUploaded(
            filename="data.jsonl",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            purpose=purpose,
            object_key=key,
        )
        fields: Doc = {**OWNED, **fact.model_dump(), "verdict": None}
        await create(db, fact, file_id, fields, actor=ACTOR)
        return file_id

    return upload_bytes


@pytest.fixture
def put_template(db: Database, objects: ObjectStore, base: str) -> Callable[[str], Any]:
    """Gives the base another chat template."""

    async def put(template: str) -> None:
        entry = await db["bases"].find_one({"_id": base})
        assert entry is not None
        stored = await objects.put(f"{entry['key']}chat_template.jinja", template.encode())
        file = {"files.$.bytes": stored.bytes, "files.$.sha256": stored.sha256}
        await db["bases"].update_one({"_id": base, "files.name": "chat_template.jinja"}, {"$set": file})

    return put
