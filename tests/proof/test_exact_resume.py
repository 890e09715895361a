"""Resume is exact: killed at whatever instant, however often, a run ends with the bytes of one that was left alone.

Real training in real processes; instants come from a seed, which is printed. LUTHIER_PROOF=full: every variant.
"""

import hashlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builders.fused_trainer import FusedTrainer
from builders.jobs import JobStory
from builders.scale import FULL, scaled
from builders.trainer_node import World, world_at
from builders.waiting import until
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import open_mongo
from luthier_trainer.checkpoints import ADAPTER_FILES

TOUCHES_A_SAVE = 30
SERVICE_INSTANTS = ("trainer.before_start", "trainer.before_manifest", "trainer.before_checkpoint_saved")


@dataclass(frozen=True)
class Variant:
    """A run that differs from the others in what a resume must get right."""

    name: str
    seed: int
    asked: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    num_kills: int = 8


VARIANTS = [
    # 18 rows in batches of 4: the last batch of an epoch is odd.
    Variant("validation and an odd last batch", 11, {}, {"n_epochs": 24}, num_kills=20),
    Variant("packing", 12, {}, {"packing": True, "n_epochs": 8, "batch_size": 1}),
    Variant("no validation file", 13, {"validation_file": None}, {"n_epochs": 8}),
    # More tokens than one forward may hold: gradients of several add up.
    Variant("many forwards a step", 14, {"training_file": "file-long"}, {"n_epochs": 10, "batch_size": 48}),
]
SAMPLE = [Variant("a sample", 7, {}, {"n_epochs": 8}, num_kills=3)]


@pytest.fixture
async def world(mongo_url: str, database_name: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_mongo(mongo_url, database_name) as db:
        await migrate(db)
        async with world_at(db, tmp_path) as made:
            yield made


@pytest.fixture
async def trainer(world: World, mongo_url: str) -> AsyncIterator[FusedTrainer]:
    made = FusedTrainer(world, mongo_url, LUTHIER_CHECKPOINT_EVERY_STEPS="2")
    yield made
    await made.stop()


@pytest.mark.timeout(scaled(600, 1800))
@pytest.mark.parametrize("variant", VARIANTS if FULL else SAMPLE, ids=lambda variant: variant.name)
async def test_a_run_killed_at_seeded_instants_ends_with_the_same_bytes(
    world: World, trainer: FusedTrainer, variant: Variant
) -> None:
    dice = random.Random(variant.seed)
    left_alone = await world.job(**variant.asked)
    await trainer.running()
    await _place(world, left_alone, 1, variant)
    await _in_phase(left_alone, "trained", "failed")

    killed, attempt = await world.job(**variant.asked), 0
    instants: list[str] = []
    while len(instants) < variant.num_kills and (await killed.doc())["phase"] == "waiting":
        attempt += 1
        instants += await _kill_once(world, trainer, killed, attempt, variant, dice, number=len(instants))
    while (await killed.doc())["phase"] == "waiting":
        attempt += 1
        trainer.take_fuse_away()
        await trainer.running()
        await _place(world, killed, attempt, variant)
        await _in_phase(killed, "trained", "waiting", "failed")

    print(f"\n{variant.name}, seed {variant.seed}: {len(instants)} kills in {attempt} attempts: " + "; ".join(instants))
    assert len(instants) >= 0.75 * variant.num_kills, "it ended too soon"
    assert await _adapter(world, killed) == await _adapter(world, left_alone)
    assert await _series(world, killed) == await _series(world, left_alone)
    assert [where for where in instants if where.startswith("touch") and "step-" in where], "no kill met a save"
    num_resumed = await _assert_resumed_from_what_was_saved_last(world, killed)
    assert num_resumed >= (3 if FULL else 1), "nothing was ever resumed"


async def _kill_once(
    world: World,
    trainer: FusedTrainer,
    story: JobStory,
    attempt: int,
    variant: Variant,
    dice: random.Random,
    *,
    number: int,
) -> list[str]:
    """One attempt and the instant at which it died; none when it got to its end before."""
    before = trainer.burnt()
    trainer.take_fuse_away()
    kind = ("touch", "service", "step", "touch", "after_s")[number % 5]
    if kind == "service":
        name = dice.choice(SERVICE_INSTANTS)
        chance = 1 if name == "trainer.before_start" else 0.4
        await trainer.running(f"{name}=kill:{chance}", seed=dice.randrange(1000))
        await _place(world, story, attempt, variant)
        if await trainer.died_or(lambda: _has_ended(story)):
            await trainer.running()
            await _in_phase(story, "waiting")
            return [name]
        return []
    instant = {
        "touch": float(dice.randint(1, 2 * TOUCHES_A_SAVE)),
        "step": float(dice.randint(1, 3)),
        "after_s": round(dice.uniform(0.2, 8), 2),
    }[kind]
    trainer.lay_fuse(**{kind: instant})
    await trainer.running()
    await _place(world, story, attempt, variant)
    await _in_phase(story, "trained", "waiting", "failed")
    return [f"{kind} {instant:g}: {where}" for where in trainer.burnt()[len(before) :]]


async def _place(world: World, story: JobStory, attempt: int, variant: Variant) -> None:
    async def is_free() -> bool:
        return await world.holder() is None

    await until(is_free, within_s=30, what="a free slot")
    wanted = {"learning_rate": 1e-2, "lora_dropout": 0.2, "warmup_steps": 2, **variant.resolved}
    await world.place(story, attempt=attempt, **wanted)


async def _has_ended(story: JobStory) -> bool:
    return (await story.doc())["phase"] in ("trained", "failed")


async def _in_phase(story: JobStory, *phases: str) -> None:
    async def seen() -> bool:
        return (await story.doc())["phase"] in phases

    await until(seen, within_s=120, what=f"{story.id} in {phases}")


async def _adapter(world: World, story: JobStory) -> list[str]:
    doc = await story.doc()
    assert doc["phase"] == "trained", doc.get("error")
    key = doc["finished"]["artifact"]["key"]
    return [hashlib.sha256(await world.objects.read(key + name)).hexdigest() for name in ADAPTER_FILES]


async def _series(world: World, story: JobStory) -> list[tuple[Any, ...]]:
    """Every step and validation of the run, as exact as they are written."""
    lines = (await world.objects.read((await story.doc())["finished"]["metrics_key"])).splitlines()
    names = ("kind", "step", "loss", "grad_norm", "learning_rate", "valid_loss", "trained_tokens")
    return [tuple(row.get(name) for name in names) for row in map(json.loads, lines)]


async def _assert_resumed_from_what_was_saved_last(world: World, story: JobStory) -> int:
    """The number of attempts that went on from a checkpoint; each took the newest."""
    newest, num_resumed = None, 0
    for fact in await world.facts(story.id):
        if fact["type"] == "CheckpointSaved":
            newest = fact["data"]["step"]
        if fact["type"] == "RunStarted":
            assert fact["data"]["resumed_from_step"] == newest
            num_resumed += newest is not None
        assert fact["type"] != "CheckpointRejected"
    return num_resumed
