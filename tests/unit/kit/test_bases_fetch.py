"""What a download that was killed left behind."""

import hashlib
from pathlib import Path

from luthier_common.kit.bases import fetch_files
from luthier_common.kit.objects import PART_PREFIX, open_objects


async def test_the_next_download_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    content, cache = b"weights", tmp_path / "cache"
    cache.mkdir()
    (cache / f"{PART_PREFIX}killed").write_bytes(b"wei")
    (cache / "config.json").write_bytes(b"{}")
    files = [{"name": "model.bin", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    async with open_objects(f"file://{tmp_path}/objects") as objects:
        await objects.put("bases/a/model.bin", content)
        await fetch_files(objects, "bases/a/", files, cache)
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "config.json", "model.bin"]
