"""A node with real children: what a placed job becomes, and what is left when something dies."""

import asyncio
import csv
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.jobs import JobStory, make_step
from builders.trainer_node import NODE, World, working
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.journal.advance import Outcome
from luthier_common.kit.errors import TransientError
from luthier_registry.results import StepTable
from luthier_trainer.checkpoints import verify
from luthier_trainer.domain import Claim
from luthier_trainer.executor import LocalExecutor
from luthier_trainer.supervisor import Supervisor
from luthier_trainer.workplace import Workplace

STEPS_AN_EPOCH = 30
"""Of the long file: 120 rows, four at a time."""
LONG = {"n_epochs": 50, "total_steps": 50 * STEPS_AN_EPOCH}
pytestmark = pytest.mark.timeout(180)


def to_the_end_of_the_epoch(job: dict[str, Any]) -> dict[str, int]:
    """What is left of the epoch in which the job stopped, one step at least."""
    n_epochs = 1 + job["last_step"] // STEPS_AN_EPOCH
    return {"n_epochs": n_epochs, "total_steps": n_epochs * STEPS_AN_EPOCH}


async def steps_made(story: JobStory, number: int) -> dict[str, Any]:
    async def seen() -> dict[str, Any] | None:
        doc = await story.doc()
        return doc if doc["last_step"] >= number else None

    return await until(seen, within_s=60, what=f"step {number}")


async def freed(world: World) -> None:
    async def seen() -> bool:
        return await world.holder() is None

    await until(seen, within_s=30, what="free slots")


async def fetch(world: World, blob: dict[str, Any], target: Path) -> Path:
    target.mkdir()
    async for info in world.objects.list(blob["key"]):
        await world.objects.download(info.key, target / info.key.removeprefix(blob["key"]))
    return target


async def test_a_placed_job_becomes_an_artifact_and_its_slots_are_free_again(world: World, tmp_path: Path) -> None:
    async with working(world.supervisor()):
        story = await world.job()
        await world.place(story, total_steps=10)
        doc = await story.reach("trained")
        await freed(world)
    facts = await world.facts(story.id)
    types = [fact["type"] for fact in facts if fact["type"] != "StepCompleted"]
    assert types[types.index("RunStarted") :] == [
        "RunStarted",
        "ValidationCompleted",
        "ValidationCompleted",
        "CheckpointSaved",
        "ValidationCompleted",
        "CheckpointSaved",
        "RunFinished",
    ]
    assert [fact["data"]["step"] for fact in facts if fact["type"] == "StepCompleted"] == list(range(1, 11))
    artifact = await fetch(world, doc["finished"]["artifact"], tmp_path / "artifact")
    assert verify(artifact) == []
    manifest = (artifact / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == doc["finished"]["artifact"]["manifest_sha256"]
    assert {"adapter_model.safetensors", "golden.json"} <= {path.name for path in artifact.iterdir()}
    assert doc["finished"]["valid_loss"] == doc["last_validation"]["full_valid_loss"]
    series = [json.loads(line) for line in (await world.objects.read(doc["finished"]["metrics_key"])).splitlines()]
    assert [line["step"] for line in series if line["kind"] == "step"] == list(range(1, 11))
    await assert_users_table_is_filled(world, doc["finished"]["metrics_key"])
    usage = await world.db["usage"].find({}).to_list(None)
    assert [(row["job"], row["attempt"], row["slots"], row["from"] < row["to"]) for row in usage] == [
        (story.id, 1, [0], True)
    ]
    assert not list((tmp_path / "home" / "trainer" / NODE).glob("ftjob-*"))


async def assert_users_table_is_filled(world: World, metrics_key: str) -> None:
    """`step_metrics.csv`, which the registry makes of the series: losses of each step, validations of each epoch."""
    table = StepTable()
    table.add((await world.objects.read(metrics_key)).splitlines())
    rows = {int(row["step"]): row for row in csv.DictReader(table.csv().decode().splitlines())}
    assert list(rows) == list(range(11))
    assert all(rows[step]["train_loss"] and rows[step]["train_mean_token_accuracy"] for step in range(1, 11))
    assert [step for step, row in rows.items() if row["full_valid_loss"]] == [0, 5, 10]


async def test_a_gpu_run_sees_the_gpu_of_its_slot_and_no_other(world: World) -> None:
    """The child is one that says what it sees."""
    settings = world.settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    told = world.root / "told"
    say = f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    executor = LocalExecutor((sys.executable, "-c", say))
    store = world.store()
    supervisor = Supervisor(store, world.objects, Workplace(settings.home, NODE), executor, settings)
    await supervisor.renew()
    gpus = [{"name": "H100", "memory_bytes": 80 << 30, "uuid": f"GPU-{name}"} for name in ("a", "b")]
    slots = [{"index": index, "gpu": gpu, "holder": None} for index, gpu in enumerate(gpus, start=2)]
    await world.db["nodes"].update_one({"_id": NODE}, {"$set": {"slots": slots}})
    async with working(supervisor):
        story = await world.job()
        await world.place(story, slot=3)
        await story.reach("waiting")
    assert told.read_text() == "GPU-b"


async def test_a_paused_run_goes_on_from_its_checkpoint(world: World, tmp_path: Path) -> None:
    async with working(world.supervisor()):
        story = await world.job(training_file="file-long")
        await world.place(story, **LONG)
        await steps_made(story, 3)
        await story.tell(f.PauseRequested(), op_id="pause")
        paused = await story.reach("paused")
        await freed(world)
        assert paused["checkpoint"]["step"] == paused["last_step"] < LONG["total_steps"]
        assert verify(await fetch(world, paused["checkpoint"]["blob"], tmp_path / "checkpoint")) == []
        await story.tell(f.JobResumed(), op_id="resume")
        await world.place(story, attempt=2, **to_the_end_of_the_epoch(paused))
        done = await story.reach("trained")
    assert done["finished"]["artifact"]["key"].endswith("/a2/artifact/")
    told = [fact for fact in await world.facts(story.id) if fact["type"] == "RunStarted"]
    assert [fact["data"]["resumed_from_step"] for fact in told] == [None, paused["last_step"]]
    series = [json.loads(line) for line in (await world.objects.read(done["finished"]["metrics_key"])).splitlines()]
    steps = [line["step"] for line in series if line["kind"] == "step"]
    assert steps == list(range(1, done["finished"]["step"] + 1))


async def test_a_broken_checkpoint_is_refused_and_an_older_one_used(world: World) -> None:
    async with working(world.supervisor(checkpoint_every_steps=10)):
        story = await world.job(training_file="file-long")
        await world.place(story, **LONG)
        await steps_made(story, 12)
        await story.tell(f.PauseRequested(), op_id="pause")
        paused = await story.reach("paused")
        await freed(world)
        key = paused["checkpoint"]["blob"]["key"]
        await world.objects.put(key + "optimizer.pt", b"not what was saved")
        await story.tell(f.JobResumed(), op_id="resume")
        await world.place(story, attempt=2, **to_the_end_of_the_epoch(paused))
        await story.reach("trained")
    facts = await world.facts(story.id)
    (rejected,) = [fact["data"] for fact in facts if fact["type"] == "CheckpointRejected"]
    assert rejected["step"] == paused["last_step"]
    assert rejected["falls_back_to_step"] is not None
    assert rejected["falls_back_to_step"] % 10 == 0
    (_, second) = [fact["data"] for fact in facts if fact["type"] == "RunStarted"]
    assert second["resumed_from_step"] == rejected["falls_back_to_step"]


async def test_a_cancelled_run_ends_at_once_and_says_no_more(world: World) -> None:
    async with working(world.supervisor()) as supervisor:
        story = await world.job(training_file="file-long")
        await world.place(story, **LONG)
        await steps_made(story, 2)
        (run, _) = next(iter(supervisor._runs.values()))
        await story.tell(f.JobCancelled(), op_id="cancel")
        await freed(world)
    assert run._child is not None
    assert await run._child.wait() == -signal.SIGKILL
    assert (await world.facts(story.id))[-1]["type"] == "JobCancelled"
    assert (await story.doc())["phase"] == "cancelled"


async def test_a_stopped_node_sends_its_run_back_with_a_checkpoint(world: World) -> None:
    async with working(world.supervisor()):
        story = await world.job(training_file="file-long")
        await world.place(story, **LONG)
        await steps_made(story, 2)
    doc = await story.doc()
    assert doc["phase"] == "waiting"
    assert doc["checkpoint"]["step"] == doc["last_step"]
    assert await world.holder() is None
    node = await world.db["nodes"].find_one({"_id": NODE})
    assert node is not None
    assert node["phase"] == "left"


async def test_a_run_that_the_job_does_not_name_is_not_started_and_its_claim_freed(world: World) -> None:
    async with working(world.supervisor(lease_ttl_s=2.0)) as supervisor:
        story = await world.job()
        await world.claim(story.id, 1)
        await freed(world)
        assert not supervisor._runs
    assert (await story.doc())["phase"] == "waiting"


async def test_data_that_teaches_nothing_fails_the_job_with_a_reason(world: World, tmp_path: Path) -> None:
    (tmp_path / "mute.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    await world.db["files"].delete_one({"_id": "file-training"})
    await world.add_file("file-training", tmp_path / "mute.jsonl")
    async with working(world.supervisor()):
        story = await world.job()
        await world.place(story)
        doc = await story.reach("failed")
        await freed(world)
    assert (doc["error"]["code"], doc["error"]["owner"]) == ("nothing_to_learn", "user")


async def test_what_must_be_told_waits_for_a_full_outbox_and_steps_do_not(world: World) -> None:
    supervisor = world.supervisor()
    await supervisor.renew()
    story = await world.job()
    await world.place(story)
    filling = [{"seq": number} for number in range(500)]
    await world.db["jobs"].update_one({"_id": story.id}, {"$set": {"outbox": filling, "phase": "pausing"}})
    store, claim = world.store(), Claim(story.id, 1, (0,), None)
    assert (await store.state(claim, [make_step(1)])).outcome is Outcome.FULL
    with pytest.raises(TransientError):
        await store.state(claim, f.RunPaused(step=None), op_id="RunPaused")


async def start_service(world: World, mongo_url: str) -> asyncio.subprocess.Process:
    settings = world.settings()
    environment = {
        **os.environ,
        "LUTHIER_HOME": str(settings.home),
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": world.db.name,
        "LUTHIER_KAFKA_URL": "127.0.0.1:1",
        "LUTHIER_OBJECTS_URL": settings.objects_url,
        "LUTHIER_TRAINER_NODE": NODE,
        "LUTHIER_TRAINER_DEVICE": "cpu",
        "LUTHIER_RENEW_S": "0.5",
        "LUTHIER_STEPS_EVERY_S": "0.2",
        "LUTHIER_CHECKPOINT_EVERY_STEPS": "5",
    }
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "luthier_trainer", env=environment)


async def is_live(world: World) -> bool:
    return await world.db["nodes"].find_one({"_id": NODE, "phase": "live"}) is not None


async def test_a_killed_service_takes_its_child_along_and_its_successor_says_what_was_lost(
    world: World, mongo_url: str
) -> None:
    first = await start_service(world, mongo_url)
    await until(lambda: is_live(world), within_s=30)
    story = await world.job(training_file="file-long")
    await world.place(story, **LONG)
    await steps_made(story, 6)

    async def has_checkpoint() -> bool:
        return (await story.doc()).get("checkpoint") is not None

    await until(has_checkpoint, within_s=30)
    pid = int(next((world.root / "home" / "trainer" / NODE).glob("*/child.pid")).read_text())
    first.kill()
    await first.wait()

    async def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
        except OSError:
            return True

    await until(is_gone, within_s=10)
    second = await start_service(world, mongo_url)
    doc = await story.reach("waiting")
    await freed(world)
    lost = [fact["data"] for fact in await world.facts(story.id) if fact["type"] == "RunFailed"]
    assert [fact["problem"]["code"] for fact in lost] == ["node_restarted"]
    assert doc["checkpoint"]["step"] >= 5
    await world.place(story, attempt=2, **to_the_end_of_the_epoch(doc))
    done = await story.reach("trained")
    told = [fact["data"]["step"] for fact in await world.facts(story.id) if fact["type"] == "StepCompleted"]
    assert told == sorted(set(told))
    assert done["finished"]["step"] == told[-1]
    second.terminate()
    assert await second.wait() == 0
