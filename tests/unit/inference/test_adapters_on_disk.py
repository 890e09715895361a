"""Adapters come and go, on disk and in memory, and no request fails for good because another one needed the room."""

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from luthier_common.kit.errors import TransientError
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_inference.artifacts import ADAPTER_FILES, ArtifactCache, BaseCache
from luthier_inference.chat import AdapterRef, error_to_wire
from luthier_inference.domain import EngineBusyError, FilesMissingError, FilesUnreadableError, Generation
from luthier_inference.engine.generation import Engine
from luthier_inference.engines import LoadedBase
from luthier_inference.serving import Prepared, Serving, greedy
from luthier_inference.settings import InferenceSettings


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    (tmp_path / "objects").mkdir()
    async with open_objects((tmp_path / "objects").as_uri()) as store:
        yield store


async def put(objects: ObjectStore, key: str, directory: Path) -> AdapterRef:
    files = []
    for name in ADAPTER_FILES:
        stored = await objects.upload(directory / name, key + name)
        files.append({"name": name, "bytes": stored.bytes, "sha256": stored.sha256})
    manifest = json.dumps({"key": key, "files": files}).encode()
    await objects.put(key + "manifest.json", manifest)
    return AdapterRef(model_id="m", key=key, manifest_sha256=hashlib.sha256(manifest).hexdigest())


async def test_cold_adapters_come_at_once_though_others_are_removed_meanwhile(
    objects: ObjectStore, adapters: dict[str, Path], tmp_path: Path
) -> None:
    references = [await put(objects, f"models/{number}/", adapters["one"]) for number in range(6)]
    cache = ArtifactCache(objects, tmp_path / "cache", 6)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/removed").symlink_to(tmp_path / "nowhere")
    directories = await asyncio.gather(*(cache.fetch(each) for each in references))
    assert all((directory / name).is_file() for directory in directories for name in ADAPTER_FILES)


async def test_files_that_are_gone_are_told_without_their_key(objects: ObjectStore, tmp_path: Path) -> None:
    cache = ArtifactCache(objects, tmp_path / "cache", 4)
    gone = AdapterRef(model_id="ftmodel-1", key="org-acme/proj-1/models/ftmodel-1/", manifest_sha256="0" * 64)
    with pytest.raises(FilesMissingError) as caught:
        await cache.fetch(gone)
    status, body = error_to_wire(caught.value)
    assert (status, body["error"]["code"]) == (404, "model_files_missing")
    assert "acme" not in json.dumps(body)


async def test_the_adapters_used_longest_ago_make_room_on_disk(
    objects: ObjectStore, adapters: dict[str, Path], tmp_path: Path
) -> None:
    first, second, third = [await put(objects, f"models/{number}/", adapters["one"]) for number in range(3)]
    cache = ArtifactCache(objects, tmp_path / "cache", 2)
    for age_s, reference in ((20, first), (10, second)):
        directory = await cache.fetch(reference)
        used_at_s = time.time() - age_s
        os.utime(directory, (used_at_s, used_at_s))
    await cache.fetch(first)
    await cache.fetch(third)
    assert sorted(cache.names) == sorted([first.name, third.name])


async def test_bases_make_room_on_disk_unless_they_are_loaded_or_about_to_be_read(
    objects: ObjectStore, tmp_path: Path
) -> None:
    cache, hour_s = BaseCache(objects, tmp_path / "bases", 1), 3600

    async def fetch(digest: str, *loaded: str, age_s: int) -> set[str]:
        directory = await cache.fetch({"digest": digest, "key": f"bases/{digest}/", "files": []}, loaded)
        used_at_s = time.time() - age_s
        os.utime(directory, (used_at_s, used_at_s))
        return {path.name for path in (tmp_path / "bases").iterdir()}

    assert await fetch("old", age_s=9 * hour_s) == {"old"}
    assert await fetch("serving", "old", age_s=8 * hour_s) == {"old", "serving"}
    assert await fetch("fresh", "serving", age_s=0) == {"serving", "fresh"}
    assert await fetch("next", age_s=0) == {"fresh", "next"}


async def test_a_complete_cache_may_be_one_that_nobody_can_write_to(
    objects: ObjectStore, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, cache = await put(objects, "models/one/", adapters["one"]), ArtifactCache(objects, tmp_path / "cache", 4)
    directory = await cache.fetch(reference)

    def refuse(*_args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert await cache.fetch(reference) == directory


async def test_a_disk_that_fails_is_no_fault_of_the_adapter(engine: Engine, adapters: dict[str, Path]) -> None:
    weights = adapters["two"] / "adapter_model.safetensors"
    away = weights.rename(weights.with_suffix(".away"))
    with pytest.raises(FilesUnreadableError) as caught:
        await engine.load_adapter("two", adapters["two"])
    assert isinstance(caught.value, TransientError)
    away.rename(weights)
    await engine.load_adapter("two", adapters["two"])


async def test_who_hangs_up_while_an_adapter_is_loaded_ends_nobody_elses_answer(
    engine: Engine, adapters: dict[str, Path]
) -> None:
    asked = Generation(tuple(engine.text.prompt_ids([{"role": "user", "content": "hi"}])), None, greedy(100))
    answering = asyncio.create_task(_count(engine, asked))
    while not engine.num_pending:
        await asyncio.sleep(0)
    for _ in range(5):
        loading = asyncio.create_task(engine.load_adapter("one", adapters["one"]))
        await asyncio.sleep(0)
        loading.cancel()
    await engine.load_adapter("two", adapters["two"])
    assert await answering > 0
    assert set(engine.adapters) == {"one", "two"}


class Crowded(Engine):
    """Every adapter has made room for another one when its answer is to begin."""

    async def load_adapter(self, name: str, directory: Path) -> None:
        assert (directory / ADAPTER_FILES[0]).is_file(), name


async def _count(engine: Engine, asked: Generation) -> int:
    return sum([delta.num_tokens async for delta in engine.generate(asked)])


async def test_an_adapter_that_finds_no_room_twice_is_asked_for_again_later(
    tiny_base: Path, objects: ObjectStore, adapters: dict[str, Path], tmp_path: Path
) -> None:
    settings = InferenceSettings(mongo_url="mongodb://unused", kafka_url="unused", objects_url="file:///unused")
    artifacts = ArtifactCache(objects, tmp_path / "cache", 4)
    nothing = cast("Any", None)
    reference = await put(objects, "models/one/", adapters["one"])
    engine = Crowded(tiny_base)
    try:
        asked = Generation((1, 2, 3), reference.name, greedy(2))
        prepared = Prepared(LoadedBase("tiny", "0", engine), asked, reference)
        with pytest.raises(EngineBusyError):
            await anext(Serving(nothing, nothing, artifacts, settings).answer(prepared))
    finally:
        engine.close()
