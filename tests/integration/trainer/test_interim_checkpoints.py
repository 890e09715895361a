"""What becomes of checkpoints that the clock made: an epoch may last for days, and an upload longer than a save."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builders.jobs import JobStory
from builders.trainer_node import World
from builders.waiting import until
from luthier_common.kit import ledger
from luthier_trainer.checkpoints import ADAPTER_FILES, STATE_FILES, seal, staged
from luthier_trainer.insisting import Insist
from luthier_trainer.protocol import CheckpointWritten, Progress, Started
from luthier_trainer.telling import Teller

EPOCH_END = 3


@pytest.fixture
async def story(world: World) -> JobStory:
    return await world.placed_job(validation_file=None)


@pytest.fixture
async def teller(world: World, story: JobStory, tmp_path: Path) -> Teller:
    run = await world.run_of(story)
    (tmp_path / "run").mkdir()
    return Teller(run, world.store(), world.objects, Insist(5.0), tmp_path / "run", every_s=0.1)


def started() -> Started:
    return Started(
        total_steps=10, steps_per_epoch=EPOCH_END, start_step=0, num_epochs=4, num_examples=12, num_skipped_rows=0,
        num_train_tokens=100, log_every_steps=1, resolved={},
    )  # fmt: skip


def written(directory: Path, story: JobStory, step: int) -> CheckpointWritten:
    target = directory / f"step-{step}"
    with staged(target) as staging:
        for name in (*ADAPTER_FILES, *STATE_FILES):
            (staging / name).write_text(f"{name} of step {step}")
        digest = seal(staging, "checkpoint", story.id, 1, step, {})
    return CheckpointWritten(
        step=step, epoch=step / EPOCH_END, directory=target, manifest_sha256=digest, metrics={}, trained_tokens=step,
        interim=step != EPOCH_END,
    )  # fmt: skip


async def kept(world: World, story: JobStory) -> list[int]:
    """Steps of the checkpoints that the job still needs."""
    rows = world.db[ledger.COLLECTION].find({"_id": {"$regex": "/step-"}, "references": f"job/{story.id}"})
    return sorted([int(row["_id"].rstrip("/").rpartition("-")[2]) async for row in rows])


async def saved(story: JobStory) -> list[int]:
    """Steps of the checkpoints that the job was told of."""
    doc = await story.doc()
    return [entry["data"]["step"] for entry in doc["outbox"] if entry["type"] == "CheckpointSaved"]


async def test_the_last_two_are_kept_beside_those_of_the_epochs(
    world: World, story: JobStory, teller: Teller, tmp_path: Path
) -> None:
    async def reports() -> AsyncIterator[Progress]:
        yield started()
        for step in range(1, 7):
            yield written(tmp_path, story, step)

            async def is_saved(step: int = step) -> bool:
                return teller.saved_step == step

            await until(is_saved, within_s=20, what=f"checkpoint {step}")

    await teller.follow(reports())
    assert await saved(story) == [1, 2, 3, 4, 5, 6]
    assert await kept(world, story) == [EPOCH_END, 5, 6]
    removed = await ledger.sweep(world.db, world.objects, older_than_s=-1)
    assert removed == 3
    left = {info.key.split("/")[-2] async for info in world.objects.list() if "/step-" in info.key}
    assert left == {"step-3", "step-5", "step-6"}


async def test_one_that_a_later_one_has_overtaken_is_not_uploaded_except_at_an_epochs_end(
    world: World, story: JobStory, teller: Teller, tmp_path: Path
) -> None:
    """All stand before the first of them is uploaded."""

    async def reports() -> AsyncIterator[Progress]:
        yield started()
        for step in range(1, 6):
            yield written(tmp_path, story, step)

    await teller.follow(reports())
    assert await saved(story) == await kept(world, story) == [EPOCH_END, 5]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-3", "step-5"]
