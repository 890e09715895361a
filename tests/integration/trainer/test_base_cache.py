"""Bases stay on the node's disk for the next run, but never in the way of one."""

import asyncio
import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders.trainer_node import World, working
from luthier_common.kit.bases import fetch_files
from luthier_inference.artifacts import BaseCache as EngineCache
from luthier_trainer.base_cache import BaseCache

pytestmark = pytest.mark.timeout(120)


def left_by_an_earlier_job(world: World, name: str, *, used_ago_s: float) -> Path:
    bundle = world.root / "home" / "cache" / "bases" / name
    bundle.mkdir(parents=True)
    (bundle / "model.safetensors").write_bytes(b"weights")
    os.utime(bundle, (time.time() - used_ago_s, time.time() - used_ago_s))
    return bundle


async def test_a_full_disk_gives_way_where_bases_lie_that_no_run_uses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused = left_by_an_earlier_job(world, "unused", used_ago_s=7200)
    recent = left_by_an_earlier_job(world, "recent", used_ago_s=60)
    download = world.objects.download

    async def download_if_there_is_room(key: str, path: Path) -> str:
        if unused.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return await download(key, path)

    monkeypatch.setattr(world.objects, "download", download_if_there_is_room)
    async with working(world.supervisor()):
        story = await world.job()
        await world.place(story, total_steps=10)
        await story.reach("trained")
    assert not unused.exists()
    assert recent.exists(), "no more goes than is needed"


async def test_what_was_used_longest_ago_goes_first_and_no_more_than_is_needed(world: World) -> None:
    older = left_by_an_earlier_job(world, "older", used_ago_s=7200)
    newer = left_by_an_earlier_job(world, "newer", used_ago_s=60)
    cache = BaseCache(world.objects, older.parent)
    base = await world.db["bases"].find_one({"digest": world.base_digest})
    assert base is not None
    lent = await cache.lend(base, world.root / "run")
    assert older.exists(), "there was room"
    assert cache.drop_one("newer")
    assert not older.exists()
    assert not cache.drop_one("newer")
    assert newer.exists()
    assert (older.parent / world.base_digest).exists(), "a run has borrowed it"
    assert {path.name for path in lent.iterdir()} == {file["name"] for file in base["files"]}


async def test_a_run_keeps_its_base_when_others_drop_it_from_the_cache(world: World) -> None:
    """The engine of this machine drops bases too, and knows nothing of runs."""
    base = await world.db["bases"].find_one({"digest": world.base_digest})
    assert base is not None
    cache = BaseCache(world.objects, world.root / "cache")
    lent = await cache.lend(base, world.root / "run")
    for path in (world.root / "cache" / world.base_digest).iterdir():
        path.unlink()
    assert all((lent / file["name"]).stat().st_size == file["bytes"] for file in base["files"])
    await cache.lend(base, world.root / "run")


async def test_what_another_process_fetches_or_an_engine_serves_is_not_dropped(world: World) -> None:
    base = await world.db["bases"].find_one({"digest": world.base_digest})
    assert base is not None
    root = world.root / "cache"
    engine = EngineCache(world.objects, root, max_dirs=4)
    served = await engine.fetch(base, ())
    cache = BaseCache(world.objects, root)
    assert not cache.drop_one("none")
    assert {path.name for path in served.iterdir()} > {file["name"] for file in base["files"]}

    fetching = asyncio.Event()

    async def download_forever(_key: str, path: Path) -> str:
        path.write_bytes(b"wei")
        fetching.set()
        await asyncio.Event().wait()
        raise AssertionError

    slow = SimpleNamespace(download=download_forever)
    task = asyncio.create_task(fetch_files(slow, "bases/b/", base["files"], root / "fetched"))  # type: ignore[arg-type]
    await asyncio.wait_for(fetching.wait(), 30)
    assert not cache.drop_one("none")
    task.cancel()
    await asyncio.wait({task})
    assert cache.drop_one("none"), "a download that was given up goes"
    assert not (root / "fetched").exists()

    await engine.fetch(base | {"digest": "other"}, ())
    assert cache.drop_one("none"), "the engine has another base now"
    assert not served.exists()


async def test_an_engine_serves_a_base_from_a_disk_that_nobody_can_write_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await world.db["bases"].find_one({"digest": world.base_digest})
    assert base is not None
    served = await EngineCache(world.objects, world.root / "cache", max_dirs=4).fetch(base, ())
    for name in (".lock", ".held"):
        (served / name).unlink()

    def refuse(*_args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert await EngineCache(world.objects, world.root / "cache", max_dirs=4).fetch(base, ()) == served


async def test_what_is_no_bundle_does_not_keep_runs_from_their_bases(world: World) -> None:
    """A home may be a disk of its own."""
    old = left_by_an_earlier_job(world, "old", used_ago_s=60)
    (old.parent / "notes.txt").touch()
    strange = old.parent / "lost+found"
    strange.mkdir()
    (strange / "unreadable").symlink_to("nothing")
    for path in (old.parent / "notes.txt", strange):
        os.utime(path, (0, 0))
    assert BaseCache(world.objects, old.parent).drop_one("none")
    assert not old.exists()
    assert {path.name for path in old.parent.iterdir()} == {"lost+found", "notes.txt"}


async def test_a_disk_without_hard_links_gets_copies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", no_links)
    base = await world.db["bases"].find_one({"digest": world.base_digest})
    assert base is not None
    lent = await BaseCache(world.objects, world.root / "cache").lend(base, world.root / "run")
    assert all((lent / file["name"]).stat().st_size == file["bytes"] for file in base["files"])
