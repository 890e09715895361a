"""Bases that are replaced while models stand on them, and bases that this machine cannot load."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from builders.bases import CONTEXT, make_tiny_base
from builders.jobs import JobStory
from luthier_common.contract import events as f
from luthier_common.kit.bases import BaseMissingError, fetch_files, find_pinned, sha256_of
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_inference.artifacts import ArtifactCache
from luthier_inference.chat import parse_chat
from luthier_inference.engines import BaseUnloadableError, EnginePool
from luthier_inference.serving import Serving
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore
from luthier_inference.verification import Verifier
from luthier_registry.store import Store

MakeArtifact = Callable[..., Awaitable[Any]]
Stage = Callable[[f.Blob], Awaitable[JobStory]]
BODY = {"messages": [{"role": "user", "content": "Where is my parcel?"}], "temperature": 0, "max_tokens": 8}


class Room(NamedTuple):
    """The parts of an inference room that load bases and try models."""

    serving: Serving
    pool: EnginePool
    verifier: Verifier

    async def answer(self, base: str, adapter: Doc | None = None) -> tuple[str, str]:
        """The digest of the bundle that answered, and what it said."""
        prepared = await self.serving.prepare(parse_chat({**BODY, "base": base, "adapter": adapter}))
        async with aclosing(self.serving.answer(prepared)) as deltas:
            return prepared.base.digest, "".join([delta.text async for delta in deltas])

    async def ready(self) -> list[str]:
        return [base["_id"] for base in await self.serving.list_ready()]


@pytest.fixture
async def make_room(db: Database, objects: ObjectStore, tmp_path: Path) -> AsyncIterator[Callable[..., Room]]:
    pools = []

    def make(**changes: Any) -> Room:
        settings = InferenceSettings(
            mongo_url="mongodb://unused", kafka_url="unused", objects_url="file:///unused", **changes
        )

        async def fetch(base: Doc) -> Path:
            directory = tmp_path / "bases" / str(base["digest"])
            await fetch_files(objects, base["key"], base["files"], directory)
            return directory

        store, clock = InferenceStore(db, "inference-here"), SystemClock()
        pools.append(pool := EnginePool(fetch, settings, clock))
        artifacts = ArtifactCache(objects, tmp_path / "adapters", 4)
        serving = Serving(store, pool, artifacts, settings)
        return Room(serving, pool, Verifier(store, serving, artifacts, settings, clock))

    yield make
    for pool in pools:
        await pool.close()


@pytest.fixture
async def publish(db: Database, objects: ObjectStore) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Puts a bundle into the catalogue, as the registry does; its digest."""
    names = set()

    async def put(name: str, directory: Path) -> str:
        paths = [path for path in sorted(directory.iterdir()) if path.name != "bundle.json"]
        files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        for path in paths:
            await objects.upload(path, f"bases/{digest}/{path.name}")
        entry = {"_id": name, "digest": digest, "key": f"bases/{digest}/", "files": files, "aliases": []}
        await Store(db).write_base(entry | {"context_length": CONTEXT, "revision": None})
        names.add(name)
        return digest

    yield put
    await db["bases"].delete_many({"_id": {"$in": list(names)}})


async def test_a_model_answers_on_the_bundle_that_it_was_trained_on(
    db: Database, make_room: Any, publish: Any, make_artifact: MakeArtifact, tiny_base: Path, tmp_path: Path
) -> None:
    """Its base was replaced since, and then put back."""
    room = make_room(default_base="changing")
    former = await publish("changing", tiny_base)
    assert await room.serving.load_default()
    adapter = (await make_artifact(seed=21)).reference | {"base_digest": former}
    tuned, plain = await room.answer("changing", adapter), await room.answer("changing")

    latter = await publish("changing", make_tiny_base(tmp_path / "other", seed=99))
    assert latter != former
    assert await room.serving.load_default()
    assert await room.ready() == ["changing"]
    assert await room.answer("changing", adapter) == tuned
    assert (await room.answer("changing"))[0] == latter
    pinned = await find_pinned(db, former)
    assert pinned is not None
    assert pinned["key"] == f"bases/{former}/"

    await publish("changing", tiny_base)
    assert await room.answer("changing") == plain
    entry = await db["bases"].find_one({"_id": "changing"})
    assert entry is not None
    assert [one["digest"] for one in entry["former"]] == [latter]
    with pytest.raises(BaseMissingError, match="digest"):
        await room.answer("changing", adapter | {"base_digest": "0" * 64})


async def test_an_engine_with_room_for_one_base_follows_its_default_and_promises_no_other(
    make_room: Any, publish: Any, make_artifact: MakeArtifact, tiny_base: Path, tmp_path: Path
) -> None:
    room = make_room(default_base="only", engine_max_bases=1)
    former = await publish("only", tiny_base)
    assert await room.serving.load_default()
    assert await room.ready() == ["only"]
    await publish("only", make_tiny_base(tmp_path / "other", seed=98))
    assert await room.serving.load_default()
    assert not await room.serving.load_default()
    assert await room.answer("only")
    adapter = (await make_artifact(seed=24)).reference | {"base_digest": former}
    assert (await room.answer("only", adapter))[0] == former
    assert await room.serving.load_default()


async def test_a_base_that_this_machine_cannot_load_rests_and_the_others_answer(
    make_room: Any, publish: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path, caplog: Any
) -> None:
    """Its network is other than its weights, which the loader finds out late, like a want of memory."""
    room = make_room(default_base="tiny")
    broken = make_tiny_base(tmp_path / "broken", seed=97)
    config = json.loads((broken / "config.json").read_bytes())
    (broken / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] * 3}))
    await publish("broken", broken)
    assert await room.serving.load_default()
    assert "broken" in await room.ready()
    failed = await asyncio.gather(*(room.answer("broken") for _ in range(4)), return_exceptions=True)
    assert [type(error) for error in failed] == [BaseUnloadableError] * 4
    assert caplog.messages.count("a base model cannot be loaded here") == 1
    story = await stage((await make_artifact(seed=22)).blob)
    await room.verifier.look()
    assert (await story.doc())["phase"] == "verified"


async def test_a_model_that_cannot_be_tried_is_published_untried_in_the_end(
    make_room: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    room = make_room(default_base="tiny", verify_patience_s=0.001)
    assert await room.serving.load_default()
    (tmp_path / "adapters").write_text("where a directory should be")
    story = await stage((await make_artifact(seed=23)).blob)
    await room.verifier.look()
    assert (await story.doc())["phase"] == "staged"
    await room.verifier.look()
    doc = await story.doc()
    assert doc["phase"] == "verified"
    skipped = next(entry for entry in doc["outbox"] if entry["type"] == "ServingSkipped")
    assert skipped["data"]["reason"].endswith("last for engine_failed")
    assert skipped["actor"]["room"] == "inference"
