"""Backup and restore of an installation: one folder with the database of one instant and every object it refers to.

A backup may be made while everything runs. It is restored into an empty database and an empty object store, with all
services stopped; the incarnation rises, so that nobody takes what was told before for what is told now. Keys come back
as they are stored, hashed: the pepper (LUTHIER_PEPPER, or the file `pepper` in the home) must be kept apart.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier_common.contract.topics import COLLECTIONS
from luthier_common.journal.projector import POSITIONS
from luthier_common.kit import ledger
from luthier_common.kit.bases import sha256_of
from luthier_common.kit.dump import Dumped, dump_collection, load_collection, measure, one_moment, read_documents
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.migrate import DOCUMENT_VERSION, incarnation, migrate
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectMissingError, ObjectStore

VERSION = 1
MANIFEST = "backup.json"
OBJECT_LIST = "objects.jsonl"
LEFT_OUT = frozenset({POSITIONS, "leases", "presence", "rate_windows"})
"""What is worth nothing later: who works on what just now, and where the former topics were read."""
_MADE_BY_MIGRATION = frozenset({"meta", "orgs", "projects"})


class BackupError(LuthierError):
    """It cannot be made, believed or restored; the text says why."""

    code = "backup"


class Manifest(BaseModel):
    """`backup.json`, written last: a folder without it is no backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    made_at: datetime
    incarnation: int
    document_version: int
    collections: dict[str, Dumped]
    objects: Dumped
    """Of the list: its count and sha256, and the bytes of the objects themselves."""
    missing: tuple[str, ...] = ()
    """Objects that the ledger names and that were not there, or not as it says."""


async def create(db: Database, objects: ObjectStore, folder: Path) -> Manifest:
    """Make a backup in a new or empty folder. The first thing read is the database, as of one instant."""
    _prepare(folder)
    dumped: dict[str, Dumped] = {}
    names = [name for name in sorted(await db.list_collection_names()) if not name.startswith("system.")]
    async with one_moment(db) as session:
        for name in names:
            if name not in LEFT_OUT:
                dumped[name] = await dump_collection(db, name, _dump_of(folder, name), session)
    listed, missing = await _copy_objects(db, objects, folder)
    manifest = Manifest(
        version=VERSION,
        made_at=datetime.now(UTC),
        incarnation=await incarnation(db),
        document_version=DOCUMENT_VERSION,
        collections=dumped,
        objects=listed,
        missing=tuple(missing),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


async def verify(folder: Path) -> Manifest:
    """Read every byte of a backup again; BackupError names the first thing that is not as it was written."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise BackupError(f"{folder} holds no complete backup: no {MANIFEST} that can be read") from error
    if manifest.version > VERSION or manifest.document_version > DOCUMENT_VERSION:
        raise BackupError("this backup was made by a newer version of Luthier: restore it with that one")
    try:
        for name, dumped in manifest.collections.items():
            if await asyncio.to_thread(measure, _dump_of(folder, name)) != dumped:
                raise BackupError(f"collection {name} is damaged")
        if await asyncio.to_thread(sha256_of, folder / OBJECT_LIST) != manifest.objects.sha256:
            raise BackupError(f"{OBJECT_LIST} is damaged")
        for listed in _listed(folder):
            if await asyncio.to_thread(sha256_of, _object_of(folder, listed["key"])) != listed["sha256"]:
                raise BackupError(f"object {listed['key']} is damaged")
    except (OSError, ValueError) as error:
        raise BackupError(f"the backup is not whole: {error}") from error
    return manifest


async def restore(db: Database, objects: ObjectStore, folder: Path) -> Manifest:
    """Put a backup into an empty database and an empty object store; the manifest with the new incarnation.

    Runs that were under way are called lost by the scheduler, or by their node, and go on from their checkpoints.
    """
    manifest = await verify(folder)
    await _require_empty(db, objects)
    for listed in _listed(folder):
        stored = await objects.upload(_object_of(folder, listed["key"]), listed["key"])
        if stored.sha256 != listed["sha256"]:
            raise BackupError(f"object {listed['key']} changed while it was read")
    await migrate(db)
    for name in _MADE_BY_MIGRATION:
        await db[name].delete_many({})
    for name, dumped in manifest.collections.items():
        if await load_collection(db, name, _dump_of(folder, name)) != dumped.count:
            raise BackupError(f"collection {name} was not restored in full")
    await migrate(db)
    await _tell_again(db)
    risen = manifest.model_copy(update={"incarnation": max(manifest.incarnation + 1, int(time.time()))})
    await db["meta"].update_one({"_id": "installation"}, {"$set": {"incarnation": risen.incarnation}})
    return risen


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "collections").mkdir()
    (folder / "objects").mkdir()


async def _copy_objects(db: Database, objects: ObjectStore, folder: Path) -> tuple[Dumped, list[str]]:
    """Copy what the dumped ledger refers to; what was copied, and the keys that are missing or damaged."""
    digest, count, num_bytes, missing = hashlib.sha256(), 0, 0, list[str]()
    with (folder / OBJECT_LIST).open("xb") as target:
        async for key, row in _referred(objects, folder):
            path = _object_of(folder, key)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                sha256 = await objects.download(key, path)
            except ObjectMissingError:
                missing.append(key)
                continue
            if key == row["_id"] and not await _is_as_noted(db, row, sha256):
                missing.append(key)
            line = json.dumps({"key": key, "bytes": path.stat().st_size, "sha256": sha256}).encode() + b"\n"
            target.write(line)
            digest.update(line)
            count, num_bytes = count + 1, num_bytes + path.stat().st_size
    return Dumped(count=count, bytes=num_bytes, sha256=digest.hexdigest()), missing


async def _referred(objects: ObjectStore, folder: Path) -> AsyncIterator[tuple[str, Any]]:
    """Each object that somebody needs, with its row of the ledger. An upload under way is nobody's yet."""
    path = _dump_of(folder, ledger.COLLECTION)
    for row in read_documents(path) if path.exists() else ():
        if all(reference.startswith(ledger.INTENT) for reference in row.get("references", [])):
            continue
        if row["_id"].endswith("/"):
            async for info in objects.list(row["_id"]):
                yield info.key, row
        else:
            yield row["_id"], row


async def _is_as_noted(db: Database, row: Doc, sha256: str) -> bool:
    """Some objects of a run are written anew while it goes on: then the ledger has moved on, too."""
    if row.get("sha256") == sha256:
        return True
    now = await db[ledger.COLLECTION].find_one({"_id": row["_id"]}, {"sha256": 1})
    return now is None or now.get("sha256") == sha256


async def _require_empty(db: Database, objects: ObjectStore) -> None:
    for name in sorted(await db.list_collection_names()):
        if name.startswith("system.") or name in LEFT_OUT | _MADE_BY_MIGRATION:
            continue
        if await db[name].find_one({}, {"_id": 1}) is not None:
            raise BackupError(f"the database is not empty: {name} has documents. Stop all services; use a new database")
    async for info in objects.list():
        raise BackupError(f"the object store is not empty: it has {info.key}")


async def _tell_again(db: Database) -> None:
    """What was not yet in the event list is told once more, under the new incarnation."""
    placeless = {"$mergeObjects": ["$$e", {"partition": None, "offset": None}]}
    outbox = {"$map": {"input": "$outbox", "as": "e", "in": placeless}}
    for name in COLLECTIONS.values():
        await db[name].update_many({"pend": True}, [{"$set": {"outbox": outbox, "unsent": True}}])


def _listed(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / OBJECT_LIST).open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _dump_of(folder: Path, name: str) -> Path:
    return folder / "collections" / f"{name}.bson"


def _object_of(folder: Path, key: str) -> Path:
    return folder / "objects" / key
