"""The stub child is to the node what the real one is: it starts, pauses, resumes and leaves a model to publish."""

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from builders.jobs import JobStory
from builders.stub_trainer import set_pace, stub_executor
from builders.trainer_node import NODE, World, working
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_inference.adapter_config import parse_adapter_config
from luthier_registry.domain import read_artifact_manifest
from luthier_trainer.checkpoints import verify
from luthier_trainer.supervisor import Supervisor
from luthier_trainer.workplace import Workplace

NUM_STEPS = {"n_epochs": 2, "total_steps": 10}


def stubbed_node(world: World, **pace: float) -> AbstractAsyncContextManager[Supervisor]:
    settings = world.settings()
    executor = stub_executor(set_pace(settings.home, **pace))
    return working(Supervisor(world.store(), world.objects, Workplace(settings.home, NODE), executor, settings))


async def artifact_of(world: World, story: JobStory, target: Path) -> Path:
    blob = (await story.doc())["finished"]["artifact"]
    target.mkdir()
    async for info in world.objects.list(blob["key"]):
        await world.objects.download(info.key, target / info.key.removeprefix(blob["key"]))
    return target


async def test_a_stub_tells_and_leaves_what_the_real_child_does(world: World, tmp_path: Path) -> None:
    async with stubbed_node(world, steps_per_s=50):
        story = await world.job()
        await world.place(story, **NUM_STEPS)
        await story.reach("trained")
    types = [fact["type"] for fact in await world.facts(story.id) if fact["type"] != "StepCompleted"]
    ran = ["RunStarted", *["ValidationCompleted"], *["ValidationCompleted", "CheckpointSaved"] * 2, "RunFinished"]
    assert types[types.index("RunStarted") :] == ran
    directory = await artifact_of(world, story, tmp_path / "artifact")
    assert verify(directory) == []
    assert len(read_artifact_manifest((directory / "manifest.json").read_bytes()).files) == 7
    assert parse_adapter_config((directory / "adapter_config.json").read_bytes()).rank == 8
    assert len(json.loads((directory / "golden.json").read_bytes())) == 16


async def test_a_paused_and_resumed_stub_ends_with_the_bytes_of_one_that_was_not(world: World, tmp_path: Path) -> None:
    async with stubbed_node(world, steps_per_s=50):
        whole = await world.job()
        await world.place(whole, **NUM_STEPS)
        await whole.reach("trained")

        async def is_free() -> bool:
            return await world.holder() is None

        await until(is_free, what="free slots")
        # The run cannot end before the pause, which cuts the step under way short.
        set_pace(world.settings().home, steps_per_s=0.1)
        paused = await world.job()
        await world.place(paused, **NUM_STEPS)
        await paused.reach("training")
        assert (await paused.tell(f.PauseRequested())).applied
        step = (await paused.reach("paused"))["checkpoint"]["step"]
        assert 0 < step < 10
        await until(is_free, what="free slots")
        set_pace(world.settings().home, steps_per_s=50)
        assert (await paused.tell(f.JobResumed())).applied
        await world.place(paused, 2, **NUM_STEPS)
        await paused.reach("trained")
    started = [fact for fact in await world.facts(paused.id) if fact["type"] == "RunStarted"]
    assert [fact["data"]["resumed_from_step"] for fact in started] == [None, step]
    one, other = [await artifact_of(world, story, tmp_path / story.id) for story in (whole, paused)]
    weights = "adapter_model.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()
