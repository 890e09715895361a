"""The trial of a finished model: only what is wrong with the model itself refuses it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.bases import make_tiny_base
from builders.engine_faults import in_each_forward
from builders.jobs import JobStory
from builders.waiting import until
from luthier_common.contract.events import DELETED
from luthier_common.contract.ids import core_of
from luthier_common.kit.failpoints import configure_failpoints
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_inference.artifacts import ADAPTER_FILES
from luthier_inference.chat import error_to_wire
from luthier_inference.domain import BrokenWeightsError
from luthier_inference.watch import EngineLostError, EngineWatch
from luthier_text import TextBundle

MakeArtifact = Callable[..., Awaitable[Any]]
Stage = Callable[..., Awaitable[JobStory]]
WITH_TOOLS = """{% if not tools %}{{ raise_exception('these rows have tools') }}{% endif %}{{ tools | tojson }}"""
TOOL = {"type": "function", "function": {"name": "track", "description": "Finds a parcel.", "parameters": {}}}


async def phase_of(story: JobStory) -> str:
    return str((await story.doc())["phase"])


@pytest.fixture
async def room(make_room: Any) -> Any:
    room = make_room(default_base="tiny")
    assert await room.serving.load_default()
    return room


async def test_a_model_waits_for_an_engine_that_fails_however_often(
    room: Any, stage: Stage, make_artifact: MakeArtifact
) -> None:
    story = await stage((await make_artifact(seed=31)).blob)

    def fail(_num_rows: int, num_ids: int) -> None:
        if num_ids > 1:
            raise RuntimeError("no memory for a neighbour")

    with in_each_forward(fail):
        for _ in range(5):
            await room.verifier.look()
    assert await phase_of(story) == "staged"
    await room.verifier.look()
    assert await phase_of(story) == "verified"


async def test_a_model_waits_for_a_base_whose_files_are_not_there(
    make_room: Any, publish: Any, stage: Stage, make_artifact: MakeArtifact, objects: ObjectStore, tiny_base: Path
) -> None:
    """An engine may have the files of a base that the store lost; they are no files of the model."""
    digest = await publish("away", tiny_base)
    weights = await objects.read(f"bases/{digest}/model.safetensors")
    await objects.delete(f"bases/{digest}/model.safetensors")
    story = await stage((await make_artifact(seed=32)).blob, "away", digest)
    await make_room(default_base="tiny").verifier.look()
    assert await phase_of(story) == "staged"
    await objects.put(f"bases/{digest}/model.safetensors", weights)
    await make_room(default_base="tiny").verifier.look()
    assert await phase_of(story) == "verified"


async def test_a_model_that_computes_no_numbers_is_refused(
    room: Any, stage: Stage, make_artifact: MakeArtifact
) -> None:
    story = await stage((await make_artifact(seed=33, weight=1e30)).blob)
    await room.verifier.look()
    doc = await story.doc()
    assert (doc["phase"], doc["error"]["code"]) == ("failed", "serving_failed")
    assert "not numbers" in doc["error"]["message"]


async def test_a_model_waits_where_its_base_computes_no_numbers_either(
    make_room: Any, publish: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    """As on a node whose GPU is faulty, or whose dtype is too small for the base: requests go to another one."""
    sick = make_tiny_base(tmp_path / "sick", seed=94)
    weights = load_file(sick / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.inf)
    save_file(weights, sick / "model.safetensors", metadata={"format": "pt"})
    digest = await publish("sick", sick)
    room = make_room(default_base="tiny")
    story = await stage((await make_artifact(seed=39)).blob, "sick", digest)
    await room.verifier.look()
    assert await phase_of(story) == "staged"
    with pytest.raises(BrokenWeightsError) as caught:
        await room.answer("sick")
    assert error_to_wire(caught.value)[0] == 503


async def test_a_trial_has_its_time_for_the_answer_and_not_for_the_download(
    make_room: Any, stage: Stage, make_artifact: MakeArtifact
) -> None:
    room = make_room(default_base="tiny", verify_answer_s=3)
    assert await room.serving.load_default()
    story = await stage((await make_artifact(seed=40)).blob)

    async def is_verified_with_a_download() -> bool:
        for name in room.artifacts.names:
            await room.artifacts.drop(name)
        await room.verifier.look()
        return await phase_of(story) == "verified"

    # Two files: each look downloads for longer than a trial may last.
    configure_failpoints("bases.mid_fetch=delay:2")
    try:
        await until(is_verified_with_a_download, within_s=60)
    finally:
        configure_failpoints()


async def test_a_room_that_stops_begins_no_further_trial(room: Any, stage: Stage, make_artifact: MakeArtifact) -> None:
    artifact = await make_artifact(seed=41)
    stories = [await stage(artifact.blob) for _ in range(2)]
    with in_each_forward(lambda *_: setattr(room.serving, "is_draining", True)):
        await room.verifier.look()
    assert sorted([await phase_of(story) for story in stories]) == ["staged", "verified"]


async def test_what_is_kept_of_a_checkpoint_goes_with_its_job(
    db: Database, room: Any, stage: Stage, make_artifact: MakeArtifact
) -> None:
    artifact = await make_artifact(seed=42)
    gone, stays = [await stage(artifact.blob) for _ in range(2)]
    for number, story in enumerate((gone, stays, gone)):
        checkpoint = f"ftckpt_{core_of(story.id)}{number:06d}"
        await room.answer("tiny", artifact.reference | {"model_id": checkpoint})
    await db["jobs"].update_one({"_id": gone.id}, {"$set": {DELETED: datetime.now(UTC)}})
    await room.serving.drop_deleted()
    kept = [f"ftckpt_{core_of(stays.id)}000001@{artifact.blob.manifest_sha256}"]
    assert room.artifacts.names == list(room.pool.adapters) == kept
    await db["jobs"].delete_many({"_id": {"$in": [gone.id, stays.id]}})


async def test_a_model_that_was_trained_with_tools_is_asked_with_them(
    make_room: Any, publish: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    base = make_tiny_base(tmp_path / "tools")
    (base / "chat_template.jinja").write_text(WITH_TOOLS + (base / "chat_template.jinja").read_text())
    row = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]}

    def use_tools(golden: list[Doc]) -> None:
        golden[:] = TextBundle.load(base).golden([{**row, "tools": [TOOL]}])
        assert golden

    story = await stage((await make_artifact(use_tools, seed=34)).blob, "tools", await publish("tools", base))
    await make_room(default_base="tiny").verifier.look()
    doc = await story.doc()
    assert doc["phase"] == "verified", doc["error"]


async def test_models_whose_base_is_not_served_here_hide_no_other(
    make_room: Any, stage: Stage, make_artifact: MakeArtifact
) -> None:
    room = make_room(default_base="tiny", inference_bases="tiny")
    assert await room.serving.load_default()
    artifact = await make_artifact(seed=35)
    for _ in range(21):
        await stage(artifact.blob, "of-another-engine")
    story = await stage(artifact.blob)
    await room.verifier.look()
    assert await phase_of(story) == "verified"


async def test_an_engine_that_hangs_keeps_no_trial_and_is_noticed(
    make_room: Any, stage: Stage, make_artifact: MakeArtifact
) -> None:
    room = make_room(default_base="tiny", verify_answer_s=2.0)
    assert await room.serving.load_default()
    watch = EngineWatch(room.pool, look_every_s=2, hung_after_s=6)
    for _ in range(9):
        await watch.look()
    story = await stage((await make_artifact(seed=36)).blob)
    go_on = threading.Event()
    with in_each_forward(lambda *_: go_on.wait(60)):
        await asyncio.wait_for(room.verifier.look(), 20)
        assert await phase_of(story) == "staged"
        for _ in range(3):
            await watch.look()
        with pytest.raises(EngineLostError, match="no layer done for 6 s"):
            await watch.look()
        go_on.set()

    async def is_verified() -> bool:
        await room.verifier.look()
        return await phase_of(story) == "verified"

    await until(is_verified)


async def test_training_texts_are_not_kept_and_what_is_goes_with_the_model(
    db: Database, room: Any, stage: Stage, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    artifact = await make_artifact(seed=37, mask_mode="of a former version")
    story = await stage(artifact.blob)
    await room.verifier.look()
    assert await phase_of(story) == "verified"
    (name,) = room.artifacts.names
    kept = {path.name for path in (tmp_path / "adapters" / name).iterdir()}
    assert kept - {".lock"} == {*ADAPTER_FILES, "manifest.json"}
    other = (await make_artifact(seed=38)).reference | {"model_id": "ftmodel-other"}
    await room.answer("tiny", other)
    await room.serving.drop_deleted()
    assert len(room.artifacts.names) == 2
    await db["models"].insert_one({"_id": "ftmodel-test", "phase": "deleted", "project": "p", "name": "n"})
    await room.serving.drop_deleted()
    assert room.artifacts.names == list(room.pool.adapters) == [f"ftmodel-other@{other['manifest_sha256']}"]
    await db["models"].delete_one({"_id": "ftmodel-test"})
