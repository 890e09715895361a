"""A job whose first attempt left checkpoints behind, as its second one finds it; no torch."""

import json
from typing import Any

from builders.jobs import JobStory
from builders.trainer_node import NODE, World
from luthier_api.domain import View
from luthier_api.wire.events import render
from luthier_common.contract import events as f
from luthier_common.contract.topics import Kind
from luthier_common.journal.notes import flags
from luthier_common.journal.rows import event_row
from luthier_common.journal.unsent import envelope_of
from luthier_trainer.checkpoints import ADAPTER_FILES, STATE_FILES, seal, staged
from luthier_trainer.domain import Assignment
from luthier_trainer.insisting import Insist
from luthier_trainer.preparation import Preparation
from luthier_trainer.protocol import RunSpec
from luthier_trainer.transfers import upload_directory


class Saved:
    """A job of two checkpoints, at steps 4 and 8 of its first attempt, that lies before its second one."""

    def __init__(self, world: World, story: JobStory) -> None:
        self.world = world
        self.story = story

    def key(self, step: int, attempt: int = 1, job_id: str | None = None) -> str:
        return f"org-default/proj-default/jobs/{job_id or self.story.id}/a{attempt}/step-{step}/"

    async def run(self) -> Assignment:
        return await self.world.run_of(self.story)

    async def upload(self, step: int, attempt: int = 1, job_id: str | None = None) -> f.CheckpointSaved:
        """Bytes that belong to this step, attempt and job, whole, below the prefix of this job."""
        directory = self.world.root / "made" / f"{job_id}-{attempt}-{step}"
        with staged(directory) as staging:
            for name in (*ADAPTER_FILES, *STATE_FILES):
                (staging / name).write_text(f"{name} of step {step} of attempt {attempt} of {job_id}")
            digest = seal(staging, "checkpoint", job_id or self.story.id, attempt, step, {})
        store = self.world.store()
        blob = await upload_directory(
            store, self.world.objects, await self.run(), directory, self.key(step, attempt), digest, Insist(0.0)
        )
        return f.CheckpointSaved(step=step, attempt=attempt, blob=blob)

    async def save(self, step: int, attempt: int = 1) -> None:
        told = await self.story.tell(await self.upload(step, attempt), attempt=attempt)
        assert told.applied

    async def overwrite(self, name: str, content: bytes, step: int = 8) -> None:
        await self.world.objects.put(self.key(step) + name, content)

    async def read(self, name: str, step: int = 8) -> bytes:
        return await self.world.objects.read(self.key(step) + name)

    async def begin_again(self) -> None:
        """Attempt 1 ends, attempt 2 is placed."""
        problem = f.Problem(code="run_crashed", message="It crashed.", owner="system")
        assert (await self.story.tell(f.RunFailed(problem=problem, retryable=True), attempt=1, op_id="1/end")).applied
        await self.world.db["nodes"].update_one({"_id": NODE}, {"$set": {"slots.0.holder": None}})
        await self.world.place(self.story, attempt=2)

    async def prepare(self) -> RunSpec:
        directory = self.world.root / "run"
        directory.mkdir()
        preparation = Preparation(await self.run(), self.world.store(), self.world.objects, self.world.settings())
        return await preparation.prepare(directory, has_gpus=False)

    async def project(self) -> None:
        """All that was told lies in the event list and no longer in the outbox."""
        doc, db = await self.story.doc(), self.world.db
        await db["events"].insert_many([row_of(doc, entry) for entry in doc["outbox"]])
        await db["jobs"].update_one({"_id": self.story.id}, [{"$set": {"outbox": []}}, {"$set": flags()}])

    async def sentences(self) -> list[str]:
        """What the job's event list says of refused checkpoints."""
        doc = await self.story.doc()
        told = [entry for entry in doc["outbox"] if entry["type"] == "CheckpointRejected"]
        rows = [row_of(doc, entry) for entry in told]
        return [line["message"] for row in rows for line in render(row, View())]


def row_of(job: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    envelope = envelope_of(Kind.JOB, job, entry)
    return event_row(envelope, json.loads(envelope.value()), 0, 0)


async def saved_in(world: World) -> Saved:
    await world.db["nodes"].update_one({"_id": NODE}, {"$set": {"slots.0.holder": None}})
    saved = Saved(world, await world.job())
    await world.place(saved.story)
    assert (
        await saved.story.tell(
            f.RunStarted(total_steps=10, num_epochs=2, num_examples=18, device="cpu"), attempt=1, op_id="1/RunStarted"
        )
    ).applied
    await saved.save(4)
    await saved.save(8)
    return saved
