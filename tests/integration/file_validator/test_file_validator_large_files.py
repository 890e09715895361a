"""A file that the API takes is read to its end, however large; one that finds no room waits for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.bases import write_chat_file
from builders.waiting import until
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_file_validator import settings
from luthier_file_validator.checker import CheckFaultError
from luthier_file_validator.settings import MIB, FileValidatorSettings

MAX_BYTES_OF_API = 8 * 1024 * MIB
SLOW_BYTES_PER_S = 0.5e6
"""Measured: 0.78e6 on a machine that had more to do."""


def test_the_largest_file_has_time_to_be_read_on_a_slow_machine() -> None:
    limits = FileValidatorSettings(mongo_url="unused", kafka_url="unused", objects_url="unused")
    for num_bytes in (1, 1024 * MIB, MAX_BYTES_OF_API):
        assert limits.check_cpu_s * limits.time_factor(num_bytes) > num_bytes / SLOW_BYTES_PER_S
        assert limits.check_wall_s * limits.time_factor(num_bytes) > num_bytes / SLOW_BYTES_PER_S


async def test_a_larger_file_has_more_time(
    db: Database, base: str, make_validator: Callable[..., Any], upload: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A small one that counts as large here: no process is ready in 10 ms."""
    monkeypatch.setattr(settings, "FULL_TIME_BYTES", 1)
    file_id = await upload(write_chat_file(tmp_path / "data.jsonl", 60).read_bytes())
    validator = await make_validator(check_wall_s=0.01)

    async def verdict() -> Doc | None:
        await validator.files.look()
        found: Doc | None = await db["files"].find_one({"_id": file_id, "phase": {"$ne": "uploaded"}})
        return found

    assert (await until(verdict, every_s=0.1, what="a verdict"))["phase"] == "processed"


async def test_a_file_that_finds_no_room_is_not_fetched_and_gets_no_verdict(
    db: Database, objects: ObjectStore, make_validator: Callable[..., Any], upload: Callable[..., Any], tmp_path: Path
) -> None:
    file_id = await upload(write_chat_file(tmp_path / "data.jsonl", 12).read_bytes())
    await db["files"].update_one({"_id": file_id}, {"$set": {"bytes": 1 << 60}})
    validator = await make_validator()
    with pytest.raises(CheckFaultError, match="no room"):
        await validator.files._validate(file_id, f"validate/{file_id}")
    doc = await db["files"].find_one({"_id": file_id})
    assert doc is not None
    assert (doc["phase"], doc["verdict"]) == ("uploaded", None)
