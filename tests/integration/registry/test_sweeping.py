"""The room as a process: what killed writers left unfinished goes, what may still be written stays."""

import os
from pathlib import Path

from builders.room_process import room_process
from builders.waiting import until
from luthier_common.kit.mongo import Database

A_DAY_S = 24 * 3600.0


def unfinished(scratch: Path, name: str, *, age_s: float) -> Path:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = scratch / name
    path.write_bytes(b"left by a writer")
    written_s = path.stat().st_mtime - age_s
    os.utime(path, (written_s, written_s))
    return path


async def test_a_registry_removes_what_was_left_unfinished_a_day_ago(
    db: Database, mongo_url: str, database_name: str, kafka_url: str, tmp_path: Path
) -> None:
    scratch = tmp_path / "objects" / ".unfinished"
    old = unfinished(scratch, ".part-old", age_s=A_DAY_S + 60)
    fresh = unfinished(scratch, ".part-fresh", age_s=A_DAY_S - 3600)
    env = {"LUTHIER_HOME": str(tmp_path / "home"), "LUTHIER_OBJECTS_URL": f"file://{tmp_path}/objects"}

    async def is_swept() -> bool:
        return not old.exists()

    async with room_process("registry", mongo_url, database_name, kafka_url, env):
        await until(is_swept, within_s=30, what="the old one is removed")
    assert fresh.exists()
