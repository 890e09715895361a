"""A validator that dies leaves nothing that stays: no object without a row in the ledger, no scratch directory."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from builders.bases import write_chat_file
from builders.jobs import ACTOR
from builders.waiting import until
from luthier_common.contract.events import FileDeleted, FileValidated
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance
from luthier_common.kit import leases, ledger
from luthier_common.kit.failpoints import FailPointError, configure_failpoints
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore
from luthier_file_validator.checker import PREFIX
from luthier_file_validator.checks import CheckReport
from luthier_file_validator.store import Store


async def test_a_report_is_noted_before_it_is_stored(db: Database, objects: ObjectStore, tmp_path: Path) -> None:
    configure_failpoints("validator.after_report=raise")
    try:
        with pytest.raises(FailPointError):
            await Store(db, objects).write_report("o/p/reports/1", {}, {"org": "o", "project": "p"}, "file/1")  # type: ignore[arg-type]
    finally:
        configure_failpoints()
    stored = [info.key async for info in objects.list()]
    assert stored == [row["_id"] async for row in db[ledger.COLLECTION].find({})]


async def test_what_a_dead_validator_was_reading_goes_and_what_a_live_one_reads_stays(
    make_validator: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "home" / "file-validator"
    await make_validator()
    (alive,) = root.glob(f"{PREFIX}*")
    dead = root / f"{PREFIX}dead"
    dead.mkdir()
    write_chat_file(dead / "file.jsonl", 3)
    await make_validator()
    assert not dead.exists()
    assert alive.exists()
    assert len(list(root.glob(f"{PREFIX}*"))) == 2
    assert os.access(alive, os.W_OK)


async def test_the_report_on_a_file_that_was_deleted_meanwhile_goes_though_the_validator_dies(
    db: Database, objects: ObjectStore, make_validator: Callable[..., Any], upload: Callable[..., Any], base: str
) -> None:
    """It has read the file when the user deletes it, and dies before it could hear of that."""
    file_id = await upload(b'{"messages": []}\n')
    file = await Store(db, objects).read_file(file_id)
    assert file is not None
    await advance(db, Kind.FILE, file_id, FileDeleted(), actor=ACTOR)
    await ledger.release(db, f"file/{file_id}")
    key = f"{file['object_key']}{ledger.REPORT}"
    await Store(db, objects).write_report(key, CheckReport(), file, f"file/{file_id}")
    await (await make_validator()).look()
    await ledger.sweep(db, objects, older_than_s=-1)
    assert await objects.head(key) is not None, "who notes first and makes the thing then has time to"
    await lapse(db)
    await ledger.sweep(db, objects, older_than_s=-1)
    assert await objects.head(key) is None
    assert await db[ledger.COLLECTION].find_one({"_id": key}) is None


@pytest.mark.parametrize("fault", ["", "validator.before_verdict=raise*1", "validator.after_verdict=raise*1"])
async def test_the_report_on_a_file_stays_as_long_as_the_file(
    db: Database,
    objects: ObjectStore,
    make_validator: Callable[..., Any],
    upload: Callable[..., Any],
    base: str,
    fault: str,
) -> None:
    """Also when the validator died before or after its verdict, and however late a sweep looks."""
    file_id = await upload(b'{"messages": []}\n')
    key = f"org-default/proj-default/files/{file_id}{ledger.REPORT}"
    configure_failpoints(fault)
    try:
        await (await make_validator()).look()
        given_up = {"_id": f"validate/{file_id}", "owner": None}
        await until(lambda: db[leases.COLLECTION].find_one(given_up), what="the end of the check")
    finally:
        configure_failpoints()
    await lapse(db)
    await ledger.sweep(db, objects, older_than_s=-1)
    assert await objects.head(key) is not None
    assert await db[ledger.COLLECTION].count_documents({"_id": key, "references": f"file/{file_id}"}) == 1


async def test_a_report_that_a_verdict_names_is_not_looked_at_again(
    db: Database, objects: ObjectStore, upload: Callable[..., Any]
) -> None:
    """The sweeper of the version before, beside which this one may work, would let it go."""
    file_id = await upload(b'{"messages": []}\n')
    store = Store(db, objects)
    file = await store.read_file(file_id)
    assert file is not None
    key = f"{file['object_key']}{ledger.REPORT}"

    async def write() -> dict[str, Any]:
        await store.write_report(key, CheckReport(), file, f"file/{file_id}")
        return await db[ledger.COLLECTION].find_one({"_id": key}) or {}

    assert (await write())["intent_until"] is not None
    assert (await store.state_verdict(file_id, FileValidated(valid=True, report_key=key))).applied
    assert "intent_until" not in (await db[ledger.COLLECTION].find_one({"_id": key}) or {})
    noted = await write()
    assert not (await store.state_verdict(file_id, FileValidated(valid=True, report_key=key))).applied
    assert await db[ledger.COLLECTION].find_one({"_id": key}) == noted, "what another noted since must be looked at"


async def lapse(db: Database) -> None:
    """Every deadline has passed."""
    long_ago = {"intent_until": datetime(2020, 1, 1, tzinfo=UTC)}
    await db[ledger.COLLECTION].update_many({"intent_until": {"$type": "date"}}, {"$set": long_ago})
