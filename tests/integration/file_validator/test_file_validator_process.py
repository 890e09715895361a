"""The room as a process: it works without being woken, and ends in order."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builders.bases import write_chat_file
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
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": database_name,
        "LUTHIER_KAFKA_URL": kafka_url,
        "LUTHIER_OBJECTS_URL": f"file://{tmp_path}/objects",
        "LUTHIER_DEFAULT_BASE": base,
        "LUTHIER_TICK_S": "0.2",
    }
    file_id = await upload(write_chat_file(tmp_path / "data.jsonl", 12).read_bytes())
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "luthier_file_validator", env=os.environ | env)

    async def verdict() -> Doc | None:
        found: Doc | None = await db["files"].find_one({"_id": file_id, "phase": "processed"})
        return found

    try:
        doc = await until(verdict, within_s=30, what="a verdict")
        assert doc["verdict"]["num_tokens"] > 0
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert list((tmp_path / "home" / "file-validator").iterdir()) == []
