"""Users who do not know of the chaos: unchanged calls of the `openai` SDK, each repeated until it is answered.

What the api acknowledged is written down; it must still be so at the end.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AsyncOpenAI,
    ConflictError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)
from openai.types.fine_tuning import FineTuningJob

from builders.invariants import DEED
from builders.workshop import FINAL, TINY
from luthier_common.kit.mongo import Database

T = TypeVar("T")
STORIES = ("plain", "plain", "delete", "pause", "pause", "cancel", "pause and cancel", "cancel and delete")
EPOCHS = (2, 8)
POLL_S = 0.5
RETRY_S = 0.5
PATIENCE_S = 150.0
_PASSING = (APIConnectionError, InternalServerError, RateLimitError, ConflictError)
_REFUSAL = "invalid_state"


class Users:
    """Several clients at work until `close`; each finishes what it began."""

    def __init__(self, client: AsyncOpenAI, rows: Path, *, seed: int, count: int, slowness: float) -> None:
        self._client = client.with_options(max_retries=2, timeout=10.0)
        self._rows = rows
        self._seed = seed
        self._count = count
        self._slowness = slowness
        self._closed = asyncio.Event()
        self.acknowledged: set[str] = set()
        self.ended: dict[str, FineTuningJob] = {}
        self.said: dict[str, set[str]] = defaultdict(set)
        """By job: the commands that were acknowledged."""
        self.tried: dict[str, set[str]] = defaultdict(set)
        """By job: the commands that were sent, whatever became of them."""
        self.answers: Counter[str] = Counter()
        self.findings: list[str] = []

    def close(self) -> None:
        """No new jobs."""
        self._closed.set()

    async def work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._try_to_be_user(number))

    async def _try_to_be_user(self, number: int) -> None:
        try:
            await self._be_user(number)
        except APIError as error:
            self.findings.append(f"I1 user {number} gave up: {type(error).__name__}: {error}")

    async def _be_user(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        file = await self._insist("upload", lambda: self._client.files.create(file=self._rows, purpose="fine-tune"))
        for turn in range(1_000_000):
            if self._closed.is_set():
                return
            if rng.random() < 0.2:
                file = await self._insist(
                    "upload", lambda: self._client.files.create(file=self._rows, purpose="fine-tune")
                )
            await self._run_job(f"{self._seed}-{number}-{turn}", file.id, rng)

    async def _run_job(self, deed: str, file_id: str, rng: random.Random) -> None:
        num_epochs = rng.randint(*EPOCHS)
        job = await self._insist("create", lambda: self._create(deed, file_id, num_epochs))
        self.acknowledged.add(job.id)
        story = rng.choice(STORIES)
        if story != "plain":
            await asyncio.sleep(rng.uniform(0, 4) * self._slowness)
        if story.startswith("pause"):
            await self._until(job.id, {"queued", "running", *FINAL})
        if story.startswith("pause") and await self._command(job.id, "pause"):
            await self._until(job.id, {"paused", *FINAL})
            await asyncio.sleep(rng.uniform(0, 2))
        if "cancel" in story:
            await self._command(job.id, "cancel")
        self.ended[job.id] = ended = await self._until(job.id, set(FINAL))
        if ended.status == "failed" or (ended.status == "cancelled" and "cancel" not in self.tried[job.id]):
            self.findings.append(f"I8 job {job.id}: it is {ended.status}, for which there is no reason: {ended.error}")
        if story.endswith("delete"):
            await self._delete(job.id)

    async def _delete(self, job_id: str) -> None:
        """With its model, and again until it was heard."""
        path = f"/fine_tuning/jobs/{job_id}?delete_model=true"
        try:
            await self._insist("delete", lambda: self._client.delete(path, cast_to=object))
        except NotFoundError:
            self.answers["delete found done"] += 1
        self.said[job_id].add("delete")

    async def _create(self, deed: str, file_id: str, num_epochs: int) -> FineTuningJob:
        return await self._client.fine_tuning.jobs.create(
            model=TINY,
            training_file=file_id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": num_epochs, "batch_size": 4}}},
            metadata={DEED: deed},
            extra_headers={"Idempotency-Key": deed},
        )

    async def _until(self, job_id: str, statuses: set[str]) -> FineTuningJob:
        """Look until the job is so; a paused job that is not meant to be is resumed."""
        while True:
            job = await self._insist("retrieve", lambda: self._client.fine_tuning.jobs.retrieve(job_id))
            status: str = job.status
            if status in statuses:
                return job
            if status == "paused":
                await self._command(job_id, "resume")
            await asyncio.sleep(POLL_S)

    async def _command(self, job_id: str, verb: str) -> bool:
        """True when it was acknowledged; a job that has gone on meanwhile may refuse it."""
        jobs = self._client.fine_tuning.jobs
        call = {"pause": jobs.pause, "resume": jobs.resume, "cancel": jobs.cancel}[verb]
        self.tried[job_id].add(verb)
        try:
            job = await self._insist(verb, lambda: call(job_id))
        except APIStatusError as error:
            self.answers[f"{verb} refused ({error.code})"] += 1
            if error.code != _REFUSAL:
                self.findings.append(f"I1 job {job_id}: its {verb} was refused with {error.status_code} {error.code}")
            return False
        self.said[job_id].add(verb)
        if verb == "cancel" and job.status != "cancelled":
            self.findings.append(f"I3 job {job_id}: its cancel was acknowledged with the status {job.status}")
        return True

    async def _insist(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = await call()
            except _PASSING as error:
                if getattr(error, "code", None) == _REFUSAL:
                    raise
                self.answers[f"{what} repeated"] += 1
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                self.answers[what] += 1
                return answer


async def broken_promises(db: Database, users: Users) -> list[str]:
    """Acknowledged commands that have left no trace, and ends that were seen and are no longer so."""
    facts = {
        "pause": {"PauseRequested", "JobPaused"},
        "resume": {"JobResumed"},
        "cancel": {"JobCancelled"},
        "delete": {"JobDeleted"},
    }
    broken = list(users.findings)
    told: dict[str, set[str]] = defaultdict(set)
    async for row in db["events"].find({"kind": "job"}, {"thing": 1, "type": 1}):
        told[row["thing"]].add(row["type"])
    broken += [
        f"I1 job {job_id}: its {verb} was acknowledged and is no fact"
        for job_id, verbs in users.said.items()
        for verb in verbs
        if not facts[verb] & told[job_id]
    ]
    status = {job["_id"]: job["status"] async for job in db["jobs"].find({}, {"status": 1})}
    broken += [
        f"I3 job {job_id}: a user saw it {job.status}, now it is {status.get(job_id)}"
        for job_id, job in users.ended.items()
        if status.get(job_id) != job.status
    ]
    return broken
