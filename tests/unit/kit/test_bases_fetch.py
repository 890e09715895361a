"""Bundles on a disk that several processes share."""

import asyncio
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

from builders.waiting import until
from luthier_common.kit.bases import drop_unused, fetch_files, hold_cached
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


async def test_who_waited_for_anothers_download_goes_on_though_that_one_keeps_the_bundle(tmp_path: Path) -> None:
    """As a run does beside the engine of its home, which fetched the same base and serves it from then on."""
    content, cache = b"weights", tmp_path / "cache"
    files = [{"name": "model.bin", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    is_fetching, may_end = asyncio.Event(), asyncio.Event()

    async def download(_key: str, path: Path) -> str:
        is_fetching.set()
        await may_end.wait()
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    async def serve() -> int:
        await fetch_files(SimpleNamespace(download=download), "bases/a/", files, cache)  # type: ignore[arg-type]
        return hold_cached(cache)

    engine = asyncio.create_task(serve())
    await asyncio.wait_for(is_fetching.wait(), 30)
    run = asyncio.create_task(fetch_files(SimpleNamespace(), "bases/a/", files, cache))  # type: ignore[arg-type]

    async def both_want_the_lock() -> bool:
        opened = [path.resolve() for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return opened.count(cache.resolve() / ".lock") == 2

    await until(both_want_the_lock)
    may_end.set()
    held = await asyncio.wait_for(engine, 30)
    await asyncio.wait_for(run, 30)
    assert not drop_unused(cache), "it is served"
    os.close(held)
    assert drop_unused(cache)
