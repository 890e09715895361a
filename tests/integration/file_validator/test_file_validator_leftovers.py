"""A validator that dies leaves nothing that stays: no object without a row in the ledger, no scratch directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.bases import write_chat_file
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import FailPointError, configure_failpoints
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore
from luthier_file_validator.checker import PREFIX
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
