"""What a user does and sees, in words: the public API through the `openai` SDK, and the documents behind it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from builders.stub_trainer import command_of, set_pace
from builders.waiting import until
from luthier_common.kit.mongo import Database, Doc, open_mongo
from luthier_stack.ports import find_free_ports
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

TINY = "tiny"
QUICK = {
    "LUTHIER_DEFAULT_BASE": TINY,
    "LUTHIER_LEASE_TTL_S": "4",
    "LUTHIER_RENEW_S": "1",
    "LUTHIER_TICK_S": "0.5",
    "LUTHIER_CLAIM_TTL_S": "4",
    "LUTHIER_RETRY_REST_S": "0.2",
    "LUTHIER_TRAINER_NUM_THREADS": "1",
    "LUTHIER_REQUESTS_PER_MINUTE": "1000000",
}
PHASES = ("checking", "waiting", "placed", "training", "trained", "staged", "verified", "succeeded")
FINAL = ("succeeded", "failed", "cancelled")


class Workshop:
    """What a user does, in words."""

    def __init__(self, client: AsyncOpenAI, db: Database) -> None:
        self.client = client
        self.db = db

    async def upload(self, path: Path) -> str:
        return (await self.client.files.create(file=path, purpose="fine-tune")).id

    async def create(self, rows: Path, *, num_epochs: int = 1, **more: Any) -> FineTuningJob:
        hyperparameters = {"n_epochs": num_epochs, "batch_size": 4}
        return await self.client.fine_tuning.jobs.create(
            model=TINY,
            training_file=await self.upload(rows),
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[arg-type]
            **more,
        )

    async def phase(self, job_id: str) -> str:
        return str((await self.doc(job_id))["phase"])

    async def doc(self, job_id: str) -> Doc:
        doc = await self.db["jobs"].find_one({"_id": job_id})
        assert doc is not None
        return doc

    async def in_phase(self, job_id: str, *phases: str, within_s: float = 60) -> str:
        async def reached() -> str | None:
            phase = await self.phase(job_id)
            return phase if phase in phases else None

        return await until(reached, within_s=within_s, what=f"{job_id} in {phases}")

    async def passed(self, job_id: str, phase: str, within_s: float = 90) -> None:
        """The job is in this phase, or further on the way to a model."""
        later = PHASES[PHASES.index(phase) :]
        await self.in_phase(job_id, *later, within_s=within_s)

    async def steps(self, job_id: str, at_least: int) -> None:
        async def made() -> bool:
            return int((await self.doc(job_id))["last_step"]) >= at_least

        await until(made, within_s=90, what=f"{at_least} steps of {job_id}")

    async def ended(self, job_id: str, within_s: float = 110) -> FineTuningJob:
        async def final() -> FineTuningJob | None:
            job = await self.client.with_options(max_retries=10).fine_tuning.jobs.retrieve(job_id)
            return job if job.status in FINAL else None

        return await until(final, within_s=within_s, every_s=0.2, what=f"the end of {job_id}")

    async def events(self, job_id: str) -> list[FineTuningJobEvent]:
        """All events, oldest first, when the list has caught up with the document."""

        async def caught_up() -> bool:
            doc = await self.doc(job_id)
            return await self.db["events"].count_documents({"kind": "job", "thing": job_id}) == doc["seq"]

        await until(caught_up, within_s=30, what="the event list to catch up")
        newest_first = [event async for event in self.client.fine_tuning.jobs.list_events(job_id, limit=100)]
        return newest_first[::-1]

    async def ask(self, model: str, question: str = "What colour is the sky?") -> str:
        reply = await self.client.with_options(max_retries=10).chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=8, temperature=0
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens > 0
        return reply.choices[0].message.content or ""

    async def assert_told_exactly(self, job_id: str) -> None:
        """The event list is 1..seq without gap or double, and its only terminal fact is the last."""
        await self.events(job_id)
        doc = await self.doc(job_id)
        found = self.db["events"].find({"kind": "job", "thing": job_id}).sort("seq", 1)
        told = [row async for row in found]
        assert [row["seq"] for row in told] == list(range(1, doc["seq"] + 1))
        assert [row["seq"] for row in told if row.get("terminal")] == [doc["seq"]]


def stack_settings(
    home: Path,
    base: Path,
    *,
    kafka_url: str | None = None,
    objects_url: str | None = None,
    stub_child: bool = False,
    steps_per_s: float = 20.0,
    **env: str,
) -> StackSettings:
    """A whole stack on free ports with the tiny base and short intervals; `env` is for its services.

    With `stub_child` its trainer has four slots and trains nothing, so many steps a second; `set_pace` changes that.
    """
    stubbed: dict[str, str] = {}
    commands: dict[str, tuple[str, ...]] = {}
    if stub_child:
        stubbed = {"LUTHIER_TRAINER_CPU_SLOTS": "4", "LUTHIER_STEPS_EVERY_S": "0.2"}
        commands = {"trainer": command_of(set_pace(home, steps_per_s=steps_per_s))}
    return StackSettings(
        home=home,
        port=find_free_ports(1)[0],
        mongo_url=None,
        kafka_url=kafka_url,
        objects_url=objects_url,
        service_env=QUICK | {"LUTHIER_BASE_SOURCES": json.dumps({TINY: str(base)})} | stubbed | env,
        commands=commands,
    )


@asynccontextmanager
async def workshop_of(stack: Stack) -> AsyncIterator[Workshop]:
    """A user of this stack, with its admin key."""
    async with (
        open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db,
        AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key) as client,
    ):
        yield Workshop(client, db)


async def wait_ready(stack: Stack) -> None:
    """Every service says that it can do its work."""
    for name in stack.settings.services:
        await stack.wait_ready(name, 120)
