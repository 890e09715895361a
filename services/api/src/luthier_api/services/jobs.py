"""Fine-tuning jobs: look at them, and the verbs. What a job does next is stated by facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from luthier_api.domain import Page
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode, not_found
from luthier_api.idempotency import DAY_S
from luthier_api.services.waiting import Bases, Queue
from luthier_api.settings import ApiSettings
from luthier_api.store import Repository
from luthier_api.store.deletion import END_OF_JOB
from luthier_api.store.filters import JobFilter
from luthier_common.contract.events import Fact, JobCancelled, JobDeleted, JobPaused, JobResumed, PauseRequested
from luthier_common.contract.ids import FILE_PREFIX, JOB_PREFIX, canonical_id
from luthier_common.contract.lifecycle import JOB
from luthier_common.contract.spec import Hyperparameters
from luthier_common.journal.advance import Outcome
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc

FINE_TUNE = "fine-tune"
_RACES = 5
DONE: Final = "done"
"""What a verb says when the job already is as it asks."""
Verb = Callable[[str], Fact | Literal["done"] | None]
"""From a phase to the fact to state; None where the verb is not allowed."""


@dataclass(frozen=True)
class WantedJob:
    """What a create asks for, whatever the dialect."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int | None
    metadata: Mapping[str, str] | None
    hyperparameters: Hyperparameters
    given_at: Mapping[str, str] = field(default_factory=dict)
    """Where in the request each hyperparameter stands, for errors."""


class JobService:
    """Jobs of one principal, for one request."""

    def __init__(self, repository: Repository, bases: Bases, queue: Queue, settings: ApiSettings) -> None:
        self._repository = repository
        self._bases = bases
        self._queue = queue
        self._settings = settings

    async def get(self, job_id: str) -> Doc:
        job = await self._repository.find_job(canonical_id(job_id))
        if job is None:
            raise not_found("fine-tuning job", job_id)
        return job

    async def find_id(self, job_id: str) -> str:
        """The stored id, for what needs nothing else of the job."""
        job = await self._repository.find_job(canonical_id(job_id), {"_id": 1})
        if job is None:
            raise not_found("fine-tuning job", job_id)
        return str(job["_id"])

    async def list(self, page: Page, wanted: JobFilter) -> list[Doc]:
        """One more than the page holds, if there are more."""
        if wanted.model is not None and (base := await self._bases.find(wanted.model)) is not None:
            wanted = replace(wanted, model=base["_id"])
        late_by_s = max(self._settings.idempotency_s, self._settings.retry_hash_s, DAY_S)
        return await self._repository.list_jobs(page.after_a(JOB_PREFIX), wanted.query(late_by_s=late_by_s))

    async def cancel(self, job_id: str) -> Doc:
        """Cancelled at once; a second cancel finds it so."""
        return await self._move(job_id, "cancel", _cancel)

    async def pause(self, job_id: str, *, is_retry: bool = False) -> Doc:
        """At once where no slots are held, else as soon as the run has saved a checkpoint."""
        return await self._move(job_id, "pause", lambda phase: _pause(phase, is_retry))

    async def resume(self, job_id: str, *, is_retry: bool = False) -> Doc:
        """It waits again, so it needs room among the waiting jobs as a new one does."""
        is_paused = (await self.get(job_id))["phase"] == "paused"
        if is_paused:
            await self._queue.take_place(self._repository, self._settings.max_queued_jobs)
        try:
            return await self._move(job_id, "resume", lambda phase: _resume(phase, is_retry))
        finally:
            if is_paused:
                self._queue.made()

    async def delete(self, job_id: str, *, is_retry: bool = False) -> Doc:
        """Gone for every reader, where it has ended; what is left of it. Its bytes are still to be let go."""
        if is_retry and (gone := await self._repository.find_deleted_job(canonical_id(job_id))) is not None:
            return gone
        return await self._move(job_id, "delete", _delete, also=END_OF_JOB)

    async def _move(self, job_id: str, verb: str, decide: Verb, also: Mapping[str, Any] | None = None) -> Doc:
        """State the fact that the verb means in the job's present phase; look again when that changed meanwhile."""
        job = await self.get(job_id)
        for _ in range(_RACES):
            fact = decide(job["phase"])
            if fact == DONE:
                return job
            if fact is None:
                break
            moved = await self._repository.advance(fact, job["_id"], also=also)
            await failpoint("jobs.after_verb")
            if moved.outcome in (Outcome.APPLIED, Outcome.DUPLICATE):
                assert moved.doc is not None
                return moved.doc
            if moved.outcome is Outcome.FULL:
                raise ApiError(ErrorCode.UNAVAILABLE, "The event log is full for now; try again.")
            job = await self.get(job_id)
        hint = " Cancel it first." if verb == "delete" else ""
        message = f"Cannot {verb} the job {job['_id']}: its state is {job['status']} ({job['phase']}).{hint}"
        raise ApiError(ErrorCode.INVALID_STATE, message, param="status", headers=NO_RETRY)

    async def find_base(self, wanted: WantedJob) -> Doc:
        """The base model to be tuned; ApiError where there is none, or where it is too small for what is asked."""
        base = await self._bases.find(wanted.model)
        if base is None:
            message = f"Model {wanted.model[:200]} is not available for fine-tuning or does not exist."
            raise ApiError(ErrorCode.BASE_NOT_FOUND, message, param="model")
        length, most = wanted.hyperparameters.context_length, base.get("context_length")
        if length is not None and most is not None and length > most:
            message = f"context_length must be at most {most} for {base['_id']}."
            raise ApiError(ErrorCode.INVALID_VALUE, message, param=wanted.given_at.get("context_length"))
        return base

    async def find_files(self, wanted: WantedJob) -> dict[str, Doc]:
        names = {"training_file": wanted.training_file, "validation_file": wanted.validation_file}
        files = {param: await self.find_file(param, name) for param, name in names.items() if name is not None}
        if len({file["_id"] for file in files.values()}) < len(files):
            message = "The validation file must be another one than the training file."
            raise ApiError(ErrorCode.INVALID_VALUE, message, param="validation_file")
        return files

    async def find_file(self, param: str, name: str) -> Doc:
        """By id, else by its exact name, the newest that may be trained on."""
        file_id = canonical_id(name)
        file = await self._repository.find_file(file_id) if file_id.startswith(FILE_PREFIX) else None
        file = file or await self._repository.find_file_named(name, FINE_TUNE)
        if file is None:
            raise no_file(param, name)
        if file["purpose"] != FINE_TUNE:
            message = f"The purpose of {file['_id']} is {file['purpose']}; it must be {FINE_TUNE}."
            raise ApiError(ErrorCode.INVALID_PURPOSE, message, param=param)
        return file


def no_file(param: str, name: str) -> ApiError:
    return ApiError(ErrorCode.FILE_NOT_FOUND, f"No such file: {name[:200]}", param=param)


def _cancel(phase: str) -> Fact | Literal["done"] | None:
    if phase in ("succeeded", "failed"):
        return None
    return DONE if phase == "cancelled" else JobCancelled()


def _delete(phase: str) -> Fact | None:
    return JobDeleted() if JOB.is_final(phase) else None


def _pause(phase: str, is_retry: bool) -> Fact | Literal["done"] | None:
    if phase == "waiting":
        return JobPaused()
    if phase in ("placed", "training"):
        return PauseRequested()
    return DONE if phase == "pausing" or (is_retry and phase == "paused") else None


def _resume(phase: str, is_retry: bool) -> Fact | Literal["done"] | None:
    if phase == "paused":
        return JobResumed()
    return DONE if is_retry and phase in ("waiting", "placed", "training") else None
