"""Bases stay on the node's disk for the next run, but never in the way of one."""

import errno
import os
import time
from pathlib import Path

import pytest

from builders.trainer_node import World, working
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
    unused = left_by_an_earlier_job(world, "unused", used_ago_s=60)
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


async def test_what_was_used_longest_ago_goes_first_and_no_more_than_is_needed(world: World) -> None:
    older = left_by_an_earlier_job(world, "older", used_ago_s=7200)
    newer = left_by_an_earlier_job(world, "newer", used_ago_s=60)
    cache = BaseCache(world.objects, older.parent)
    assert not cache.make_room(1)
    base = await world.db["bases"].find_one({"digest": world.base_digest})
    assert base is not None
    lent = await cache.lend(base, world.root / "run")
    assert cache.make_room(spared="newer")
    assert not older.exists()
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
