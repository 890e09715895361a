"""The room as a process: it works without being woken, and ends in order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from builders.bases import write_chat_file
from builders.room_process import room_process
from builders.waiting import until
from luthier_common.kit.mongo import Database, Doc


async def test_a_room_alone_gives_verdicts_and_ends_in_order(
    db: Database,
    mongo_url: str,
    database_name: str,
    kafka_url: str,
    tmp_path: Path,
    upload: Callable[..., Any],
    base: str,
) -> None:
    env = {
        "LUTHIER_HOME": str(tmp_path / "home"),
        "LUTHIER_OBJECTS_URL": f"file://{tmp_path}/objects",
        "LUTHIER_DEFAULT_BASE": base,
        "LUTHIER_TICK_S": "0.2",
    }
    file_id = await upload(write_chat_file(tmp_path / "data.jsonl", 12).read_bytes())

    async def verdict() -> Doc | None:
        found: Doc | None = await db["files"].find_one({"_id": file_id, "phase": "processed"})
        return found

    async with room_process("file_validator", mongo_url, database_name, kafka_url, env):
        doc = await until(verdict, within_s=30, what="a verdict")
        assert doc["verdict"]["num_tokens"] > 0
    assert list((tmp_path / "home" / "file-validator").iterdir()) == []
