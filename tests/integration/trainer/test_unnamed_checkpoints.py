"""What a run stored and could not name any more goes when its attempt is over; what a fact names stays."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from builders.jobs import JobStory
from builders.trainer_node import World
from luthier_common.contract import events as f
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import FailPointError, configure_failpoints
from luthier_trainer.checkpoints import ADAPTER_FILES, STATE_FILES, seal, staged
from luthier_trainer.domain import Assignment
from luthier_trainer.insisting import Insist
from luthier_trainer.store import Store
from luthier_trainer.transfers import upload_directory

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Saving(NamedTuple):
    """A run that has begun and saves."""

    world: World
    store: Store
    story: JobStory
    run: Assignment

    async def upload(self, root: Path, name: str, fault: str = "") -> f.Blob | None:
        """None when it breaks off."""
        with staged(root / name) as staging:
            for file in (*ADAPTER_FILES, *STATE_FILES):
                (staging / file).write_text(f"{file} of {name}")
            digest = seal(staging, "checkpoint", self.story.id, 1, 1, {})
        configure_failpoints(fault)
        try:
            where = (root / name, f"{self.run.prefix}{name}/", digest)
            return await upload_directory(self.store, self.world.objects, self.run, *where, Insist(0.0))
        except FailPointError:
            return None
        finally:
            configure_failpoints()

    async def lose(self) -> None:
        """The scheduler gives the attempt up; its node does not know yet."""
        assert (await self.story.tell(f.RunLost(reason="silent"), attempt=1)).applied

    async def sweep(self) -> list[str]:
        """After every deadline; the prefixes that are there then."""
        rows = self.world.db[ledger.COLLECTION]
        await rows.update_many({"intent_until": {"$type": "date"}}, {"$set": {"intent_until": LONG_AGO}})
        await ledger.sweep(self.world.db, self.world.objects, older_than_s=-1)
        left = {info.key.removeprefix(self.run.prefix) async for info in self.world.objects.list(self.run.prefix)}
        return sorted({key.partition("/")[0] for key in left})

    async def num_bytes(self) -> int:
        return await ledger.count_bytes(self.world.db, self.run.org, self.run.project)


@pytest.fixture
async def saving(world: World) -> Saving:
    store = world.store()
    story = await (await world.placed_job(store, validation_file=None)).started()
    return Saving(world, store, story, await world.run_of(story))


@pytest.mark.parametrize("name", ["step-1", "artifact"])
async def test_what_a_lost_attempt_did_not_name_goes_when_its_slots_are_free(
    saving: Saving, tmp_path: Path, name: str
) -> None:
    assert await saving.upload(tmp_path, name, "trainer.mid_save=raise") is None
    assert await saving.sweep() == [name], "the run is at work, and may name it yet"
    await saving.lose()
    assert await saving.sweep() == [name], "its node may still be storing"
    assert await saving.num_bytes() > 0
    await saving.store.free(saving.run.claim)
    assert await saving.sweep() == []
    assert await saving.num_bytes() == 0


async def test_an_attempt_that_lasts_may_name_it_whoever_holds_the_slots(saving: Saving, tmp_path: Path) -> None:
    await saving.upload(tmp_path, "step-1", "trainer.mid_save=raise")
    await saving.store.free(saving.run.claim)
    assert await saving.sweep() == ["step-1"]


async def test_who_is_slow_has_time_again_and_again(saving: Saving, tmp_path: Path) -> None:
    """An upload may take longer than a deadline: each look while the attempt lasts is the beginning of another one."""
    await saving.upload(tmp_path, "step-1", "trainer.mid_save=raise")
    row: dict[str, str] = {"_id": f"{saving.run.prefix}step-1/"}
    rows = saving.world.db[ledger.COLLECTION]
    await rows.update_one(row, {"$set": {"touched_at": LONG_AGO}})
    await saving.sweep()
    now = datetime.now(UTC)
    looked_at = await rows.find_one(row) or {}
    assert looked_at["intent_until"] > now
    assert (now - looked_at["touched_at"]).total_seconds() < 60
    assert await saving.upload(tmp_path / "again", "step-1") is not None


@pytest.mark.parametrize("is_listed", [False, True], ids=["in the outbox", "in the list"])
async def test_what_was_named_stays_whatever_becomes_of_the_attempt(
    saving: Saving, tmp_path: Path, is_listed: bool
) -> None:
    first, second = [await saving.upload(tmp_path, f"step-{step}") for step in (1, 2)]
    for step, blob in enumerate((first, second), 1):
        assert blob is not None
        saved = f.CheckpointSaved(step=step, attempt=1, blob=blob)
        assert (await saving.store.state(saving.run.claim, saved)).applied
    assert await saving.upload(tmp_path, "step-3") is not None
    await saving.lose()
    if is_listed:
        await project(saving)
    await saving.store.free(saving.run.claim)
    assert await saving.sweep() == ["step-1", "step-2"]
    assert await saving.sweep() == ["step-1", "step-2"]


async def test_an_artifact_that_the_run_finished_with_stays(saving: Saving, tmp_path: Path) -> None:
    blob = await saving.upload(tmp_path, "artifact")
    assert blob is not None
    finished = f.RunFinished(step=6, artifact=blob, trained_tokens=10, train_loss=1.0)
    assert (await saving.store.state(saving.run.claim, finished, op_id="RunFinished")).applied
    await saving.store.free(saving.run.claim)
    assert await saving.sweep() == ["artifact"]


async def test_nothing_goes_while_facts_are_missing(saving: Saving, tmp_path: Path) -> None:
    """A list that is being filled again does not name everything yet."""
    blob = await saving.upload(tmp_path, "step-1")
    assert blob is not None
    await saving.store.state(saving.run.claim, f.CheckpointSaved(step=1, attempt=1, blob=blob))
    await saving.lose()
    await saving.store.free(saving.run.claim)
    await project(saving)
    named = {"type": "CheckpointSaved"}
    row = await saving.world.db["events"].find_one_and_delete(named)
    assert row is not None
    assert await saving.sweep() == ["step-1"]
    await saving.world.db["events"].insert_one(row)
    assert await saving.sweep() == ["step-1"]


async def project(saving: Saving) -> None:
    """Move what the outbox holds into the list."""
    doc = await saving.story.doc()
    rows = [
        {"kind": "job", "thing": doc["_id"], "seq": each["seq"], "type": each["type"], "body": {"data": each["data"]}}
        for each in doc["outbox"]
    ]
    await saving.world.db["events"].insert_many(rows)
    await saving.world.db["jobs"].update_one({"_id": doc["_id"]}, {"$set": {"outbox": []}})
