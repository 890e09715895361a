"""Bases that are replaced while models stand on them, and bases that this machine cannot load."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from builders.bases import make_tiny_base
from builders.jobs import JobStory
from luthier_common.kit.bases import BaseMissingError, find_base, find_pinned
from luthier_common.kit.leases import acquire, release
from luthier_common.kit.mongo import Database
from luthier_inference.engines import BaseUnloadableError, EngineLoadingError
from luthier_inference.store import InferenceStore
from luthier_registry.store import Store

MakeArtifact = Callable[..., Awaitable[Any]]
Stage = Callable[..., Awaitable[JobStory]]


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


@pytest.mark.parametrize("what", ["vocabulary", "code"])
async def test_a_base_that_this_machine_cannot_load_rests_and_the_others_answer(
    make_room: Any, publish: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path, caplog: Any, what: str
) -> None:
    """Its network is other than its weights, which the loader finds out late, like a want of memory; or it is none."""
    room = make_room(default_base="tiny")
    broken = make_tiny_base(tmp_path / "broken", seed=97)
    config = json.loads((broken / "config.json").read_bytes())
    change = {"vocab_size": config["vocab_size"] * 3} if what == "vocabulary" else {"auto_map": {"AutoModel": "x.Y"}}
    (broken / "config.json").write_text(json.dumps(config | change))
    await publish("broken", broken)
    assert await room.serving.load_default()
    assert "broken" in await room.ready()
    failed = await asyncio.gather(*(room.answer("broken") for _ in range(4)), return_exceptions=True)
    assert [type(error) for error in failed] == [BaseUnloadableError] * 4
    assert caplog.messages.count("a base model cannot be loaded here") == 1
    assert "broken" not in await room.ready(), "nobody is sent here for it while it rests"
    story = await stage((await make_artifact(seed=22)).blob)
    await room.verifier.look()
    assert (await story.doc())["phase"] == "verified"


async def test_a_base_makes_room_only_when_nobody_uses_it(
    make_room: Any, publish: Any, tiny_base: Path, tmp_path: Path
) -> None:
    """Its request was taken, and is not in the engine yet."""
    room = make_room(default_base="tiny")
    assert await room.serving.load_default()
    second = await publish("second", tiny_base)
    third = await publish("third", make_tiny_base(tmp_path / "third", seed=96))
    async with room.serving.base("second"):
        with pytest.raises(EngineLoadingError):
            await room.answer("third")
        assert (await room.answer("second"))[0] == second
    assert (await room.answer("third"))[0] == third


async def test_a_name_means_the_base_that_has_it_and_no_alias(
    db: Database, make_room: Any, publish: Any, tiny_base: Path, tmp_path: Path
) -> None:
    await publish("a-base", tiny_base, aliases=["the-base", "by-the-way"])
    named = await publish("the-base", make_tiny_base(tmp_path / "named", seed=95), aliases=["by-the-way"])
    room = make_room(default_base="the-base")
    assert await room.ready() == ["a-base", "tiny"], "the default base is announced when it is loaded"
    assert await room.serving.load_default()
    assert await room.node.check() is None
    assert (await room.answer("the-base"))[0] == named
    assert [(await find_base(db, name) or {})["_id"] for name in ("the-base", "by-the-way")] == ["the-base", "a-base"]
    assert (await room.answer("by-the-way"))[0] != named
    only = make_room(inference_bases="the-base")
    assert await only.ready() == ["the-base"]


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


async def test_a_model_whose_base_rests_waits_as_long_as_any_other(
    db: Database, make_room: Any, publish: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    """The registry is told that an engine serves the base, and leaves the model to it."""
    room = make_room(default_base="tiny", verify_patience_s=0.001)
    broken = make_tiny_base(tmp_path / "resting", seed=93)
    config = json.loads((broken / "config.json").read_bytes())
    (broken / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    story = await stage((await make_artifact(seed=25)).blob, "resting", await publish("resting", broken))
    await room.verifier.look()
    await room.node.renew()
    assert "resting" not in await room.ready()
    assert "resting" in await Store(db).served_names()
    assert (await story.doc())["phase"] == "staged"

    other = InferenceStore(db, "inference-ready")
    await other.join("cpu", "http://127.0.0.1:1")
    await other.renew(["resting"], [], [], "cpu", is_draining=False)
    await room.verifier.look()
    assert (await story.doc())["phase"] == "staged", "that node is about to try it"
    await other.renew([], ["resting"], [], "cpu", is_draining=False)
    trial = await acquire(db, f"verify/{story.id}", "inference-ready", 60)
    assert trial is not None
    await room.verifier.look()
    assert (await story.doc())["phase"] == "staged", "it is trying it still"
    await release(db, trial)
    await other.leave()

    await room.verifier.look()
    skipped = next(entry for entry in (await story.doc())["outbox"] if entry["type"] == "ServingSkipped")
    assert skipped["data"]["reason"].endswith("last for base_not_ready")
