"""A checkpoint that is not whole, or not this run's, is never resumed from; the one before is, and an event says so."""

import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aioboto3
import pytest
from moto.server import ThreadedMotoServer

from builders.saved_job import Saved, saved_in
from builders.trainer_node import World, world_at
from luthier_common.contract import events as f
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import open_mongo
from luthier_common.kit.objects import S3Access, open_objects
from luthier_trainer.checkpoints import ADAPTER_FILES, MANIFEST_FILE, STATE_FILES
from luthier_trainer.domain import AttemptOverError
from luthier_trainer.insisting import Insist
from luthier_trainer.preparation import Preparation
from luthier_trainer.protocol import RunSpec
from luthier_trainer.transfers import METRICS_FILE, upload_directory

BUCKET = "damaged"
Damage = Callable[[Saved], Awaitable[None]]


@pytest.fixture(scope="module")
async def shared(mongo_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all of them: each has a job of its own."""
    async with open_mongo(mongo_url, f"test_{uuid.uuid4().hex[:12]}") as db:
        await migrate(db)
        async with world_at(db, tmp_path_factory.mktemp("damage")) as made:
            await made.supervisor().renew()
            yield made
        await db.client.drop_database(db.name)


@pytest.fixture
async def saved(shared: World, tmp_path: Path) -> Saved:
    return await saved_in(shared._replace(root=tmp_path))


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
async def saved_on_s3(shared: World, tmp_path: Path, moto_url: str) -> AsyncIterator[Saved]:
    access = S3Access(moto_url, "us-east-1", "test", "test-secret")
    session = aioboto3.Session("test", "test-secret", region_name="us-east-1")
    async with session.client("s3", endpoint_url=moto_url) as client:
        await client.create_bucket(Bucket=BUCKET)
    async with open_objects(f"s3://{BUCKET}/{tmp_path.name}", access) as objects:
        async for info in shared.objects.list():
            if "/jobs/" not in info.key:
                await objects.put(info.key, shared.objects.get(info.key))
        yield await saved_in(shared._replace(root=tmp_path, objects=objects))


async def cut_off(saved: Saved) -> None:
    await saved.overwrite("optimizer.pt", (await saved.read("optimizer.pt"))[:-1])


async def flip(saved: Saved) -> None:
    content = bytearray(await saved.read("adapter_model.safetensors"))
    content[7] ^= 1
    await saved.overwrite("adapter_model.safetensors", bytes(content))


async def empty(saved: Saved) -> None:
    await saved.overwrite("scheduler.pt", b"")


async def take_away(saved: Saved) -> None:
    await saved.world.objects.delete(saved.key(8) + "rng_state.pth")


async def take_manifest_away(saved: Saved) -> None:
    await saved.world.objects.delete(saved.key(8) + MANIFEST_FILE)


async def scribble_over_manifest(saved: Saved) -> None:
    await saved.overwrite(MANIFEST_FILE, b"{")


async def swap_a_file(saved: Saved) -> None:
    await saved.overwrite("optimizer.pt", await saved.read("optimizer.pt", step=4))


async def swap_the_manifest(saved: Saved) -> None:
    await saved.overwrite(MANIFEST_FILE, await saved.read(MANIFEST_FILE, step=4))


async def swap_all_files(saved: Saved) -> None:
    for name in (*ADAPTER_FILES, *STATE_FILES, MANIFEST_FILE):
        await saved.overwrite(name, await saved.read(name, step=4))


NOT_THE_ONE = "its manifest is not the one that was saved"
DAMAGES: list[tuple[Damage, str]] = [
    (cut_off, "optimizer.pt does not hold what was saved"),
    (flip, "adapter_model.safetensors does not hold what was saved"),
    (empty, "scheduler.pt does not hold what was saved"),
    (take_away, "rng_state.pth is missing"),
    (take_manifest_away, "manifest.json is missing"),
    (scribble_over_manifest, NOT_THE_ONE),
    (swap_a_file, "optimizer.pt does not hold what was saved"),
    (swap_the_manifest, NOT_THE_ONE),
    (swap_all_files, NOT_THE_ONE),
]


def resumed(spec: RunSpec) -> bytes:
    assert spec.resume_from is not None
    return (spec.resume_from / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("damage", "problem"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
async def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    saved: Saved, damage: Damage, problem: str
) -> None:
    await damage(saved)
    await saved.begin_again()
    spec = await saved.prepare()
    assert resumed(spec) == await saved.read("adapter_model.safetensors", step=4)
    assert await saved.sentences() == [f"Checkpoint of step 8 cannot be used: {problem}; the run goes on from step 4"]
    assert (await saved.story.doc())["checkpoint"]["step"] == 4


@pytest.mark.parametrize("damage", [cut_off, take_away, swap_all_files])
async def test_the_same_holds_on_s3(saved_on_s3: Saved, damage: Damage) -> None:
    saved = saved_on_s3
    await damage(saved)
    await saved.begin_again()
    assert resumed(await saved.prepare()) == await saved.read("adapter_model.safetensors", step=4)
    assert len(await saved.sentences()) == 1


async def test_what_is_whole_is_used_and_nothing_said(saved: Saved) -> None:
    await saved.begin_again()
    assert resumed(await saved.prepare()) == await saved.read("adapter_model.safetensors", step=8)
    assert await saved.sentences() == []


async def test_when_none_is_whole_the_run_starts_again(saved: Saved) -> None:
    await cut_off(saved)
    await saved.world.objects.delete(saved.key(4) + MANIFEST_FILE)
    await saved.begin_again()
    assert (await saved.prepare()).resume_from is None
    assert await saved.sentences() == [
        "Checkpoint of step 8 cannot be used: optimizer.pt does not hold what was saved; the run starts again"
    ]
    assert (await saved.story.doc())["checkpoint"] is None


async def test_a_whole_checkpoint_of_another_job_is_refused(saved: Saved) -> None:
    """The job names its bytes by their sha256, as nobody but a broken writer would: still it is not this run's."""
    foreign = await saved.upload(9, job_id="ftjob-other")
    assert (await saved.story.tell(foreign, attempt=1)).applied
    await saved.begin_again()
    assert resumed(await saved.prepare()) == await saved.read("adapter_model.safetensors", step=8)
    assert await saved.sentences() == [
        "Checkpoint of step 9 cannot be used: it is that of another job; the run goes on from step 8"
    ]


async def test_a_half_written_upload_is_never_looked_at(saved: Saved) -> None:
    await saved.upload(10)
    await saved.world.objects.delete(saved.key(10) + MANIFEST_FILE)
    await saved.begin_again()
    assert resumed(await saved.prepare()) == await saved.read("adapter_model.safetensors", step=8)
    assert await saved.sentences() == []


async def test_what_a_lost_attempt_uploaded_too_late_is_nobodys(saved: Saved) -> None:
    """Whole, of this job, between the two that the job knows of; but the job was never told of it."""
    await saved.begin_again()
    late = await saved.upload(6)
    assert not (await saved.story.tell(late, attempt=1)).done
    await cut_off(saved)
    assert resumed(await saved.prepare()) == await saved.read("adapter_model.safetensors", step=4)
    assert "the run goes on from step 4" in (await saved.sentences())[0]


async def test_checkpoints_are_found_in_the_event_list_when_the_outbox_was_trimmed(saved: Saved) -> None:
    await saved.project()
    await flip(saved)
    await saved.begin_again()
    assert resumed(await saved.prepare()) == await saved.read("adapter_model.safetensors", step=4)


async def test_a_refusal_is_told_when_a_pause_was_asked_meanwhile(saved: Saved) -> None:
    """Otherwise what the pausing run saves would be behind the broken one that the job still names, and lost."""
    await cut_off(saved)
    await saved.begin_again()
    await saved.story.tell(f.PauseRequested(), op_id="pause")
    await saved.prepare()
    assert len(await saved.sentences()) == 1
    await saved.save(5, attempt=2)
    assert (await saved.story.doc())["checkpoint"]["step"] == 5


async def test_a_run_that_was_cancelled_meanwhile_does_not_go_on(saved: Saved) -> None:
    await cut_off(saved)
    await saved.begin_again()
    await saved.story.tell(f.JobCancelled(), op_id="cancel")
    with pytest.raises(AttemptOverError):
        await saved.prepare()


async def test_a_refusal_is_told_once_however_often_it_is_tried(saved: Saved) -> None:
    await cut_off(saved)
    await saved.begin_again()
    run = await saved.run()
    for number in range(2):
        directory = saved.world.root / f"run-{number}"
        directory.mkdir()
        preparation = Preparation(run, saved.world.store(), saved.world.objects, saved.world.settings())
        await preparation.prepare(directory, has_gpus=False)
    assert len(await saved.sentences()) == 1


async def test_a_series_that_cannot_be_read_stops_no_run(saved: Saved) -> None:
    lines = b'{"step": 7, "loss": 1}\n{"step": 8, "lo\nnot json\n{"step": 9, "loss": 1}\n'
    await saved.world.objects.put(f"org-default/proj-default/jobs/{saved.story.id}/a1/{METRICS_FILE}", lines)
    await saved.begin_again()
    await saved.prepare()
    assert (saved.world.root / "run" / METRICS_FILE).read_bytes() == b'{"step": 7, "loss": 1}\n'


async def test_bytes_that_changed_on_the_way_are_not_named(saved: Saved, tmp_path: Path) -> None:
    """The disk of the node lost a byte between the save and the upload."""
    directory = saved.world.root / "made" / "None-1-8"
    shutil.copytree(directory, tmp_path / "rotten")
    with (tmp_path / "rotten" / "optimizer.pt").open("r+b") as stream:
        stream.write(b"X")
    with pytest.raises(OSError, match=r"optimizer\.pt changed"):
        await upload_directory(
            saved.world.store(), saved.world.objects, await saved.run(), tmp_path / "rotten",
            saved.key(8, attempt=3), "0" * 64, Insist(0.0),
        )  # fmt: skip
    assert await saved.world.objects.head(saved.key(8, attempt=3) + MANIFEST_FILE) is None
