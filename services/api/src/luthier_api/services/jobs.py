"""Fine-tuning jobs: create, look at, and the verbs. What a job does next is stated by facts."""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from luthier_api.domain import Page
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode, not_found
from luthier_api.settings import ApiSettings
from luthier_api.store import Repository
from luthier_common.contract.events import Fact, JobCancelled, JobCreated, JobPaused, JobResumed, PauseRequested
from luthier_common.contract.ids import FILE_PREFIX, JOB_PREFIX, canonical_id, new_id
from luthier_common.contract.spec import Hyperparameters, JobSpec
from luthier_common.journal.advance import Outcome
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.telemetry import current_traceparent

FINE_TUNE = "fine-tune"
RETRY_AFTER_S = 30
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


@dataclass(frozen=True)
class Sent:
    """How the request came: by which a repetition is known. `is_retry`: the client says that it sends it again."""

    body: bytes
    idempotency_key: str | None = None
    is_retry: bool = False


class JobService:
    """Jobs of one principal, for one request."""

    def __init__(self, repository: Repository, db: Database, clock: Clock, settings: ApiSettings) -> None:
        self._repository = repository
        self._db = db
        self._clock = clock
        self._settings = settings

    async def create(self, wanted: WantedJob, sent: Sent) -> Doc:
        """The new job, or the one that an earlier sending of this request has made."""
        base = await self._find_base(wanted)
        files = await self._find_files(wanted)
        job_id = await self._reserve(sent)
        if (known := await self._repository.find_job(job_id)) is not None:
            return known
        await self._check_limits()
        for param, file in files.items():
            if not await ledger.refer(self._db, file["object_key"], f"job/{job_id}"):
                await ledger.release(self._db, f"job/{job_id}")
                raise _no_file(param, file["_id"])
        spec = JobSpec(
            model=base["_id"],
            training_file=files["training_file"]["_id"],
            validation_file=files["validation_file"]["_id"] if "validation_file" in files else None,
            suffix=wanted.suffix,
            seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
            hyperparameters=wanted.hyperparameters,
        )
        created = await self._repository.create(JobCreated(spec=spec), job_id, _blank(spec, wanted.metadata))
        assert created.doc is not None
        return created.doc

    async def get(self, job_id: str) -> Doc:
        job = await self._repository.find_job(canonical_id(job_id))
        if job is None:
            raise not_found("fine-tuning job", job_id)
        return job

    async def list(self, page: Page, metadata: Mapping[str, str] | None, *, without_metadata: bool) -> list[Doc]:
        page = page.after_a(JOB_PREFIX)
        return await self._repository.list_jobs(page, metadata, without_metadata=without_metadata)

    async def cancel(self, job_id: str) -> Doc:
        """Cancelled at once; a second cancel finds it so."""
        return await self._move(job_id, "cancel", _cancel)

    async def pause(self, job_id: str, *, is_retry: bool = False) -> Doc:
        """At once where no slots are held, else as soon as the run has saved a checkpoint."""
        return await self._move(job_id, "pause", lambda phase: _pause(phase, is_retry))

    async def resume(self, job_id: str, *, is_retry: bool = False) -> Doc:
        return await self._move(job_id, "resume", lambda phase: _resume(phase, is_retry))

    async def _move(self, job_id: str, verb: str, decide: Verb) -> Doc:
        """State the fact that the verb means in the job's present phase; look again when that changed meanwhile."""
        job = await self.get(job_id)
        for _ in range(_RACES):
            fact = decide(job["phase"])
            if fact == DONE:
                return job
            if fact is None:
                break
            moved = await self._repository.advance(fact, job["_id"])
            if moved.outcome in (Outcome.APPLIED, Outcome.DUPLICATE):
                assert moved.doc is not None
                return moved.doc
            if moved.outcome is Outcome.FULL:
                raise ApiError(ErrorCode.UNAVAILABLE, "The event log is full for now; try again.")
            job = await self.get(job_id)
        message = f"Cannot {verb} the job {job['_id']}: its state is {job['status']} ({job['phase']})."
        raise ApiError(ErrorCode.INVALID_STATE, message, param="status", headers=NO_RETRY)

    async def _find_base(self, wanted: WantedJob) -> Doc:
        base = await find_base(self._db, wanted.model)
        if base is None:
            message = f"Model {wanted.model[:200]} is not available for fine-tuning or does not exist."
            raise ApiError(ErrorCode.BASE_NOT_FOUND, message, param="model")
        length, most = wanted.hyperparameters.context_length, base.get("context_length")
        if length is not None and most is not None and length > most:
            message = f"context_length must be at most {most} for {base['_id']}."
            raise ApiError(ErrorCode.INVALID_VALUE, message, param="hyperparameters.context_length")
        return base

    async def _find_files(self, wanted: WantedJob) -> dict[str, Doc]:
        names = {"training_file": wanted.training_file, "validation_file": wanted.validation_file}
        return {param: await self._find_file(param, name) for param, name in names.items() if name is not None}

    async def _find_file(self, param: str, name: str) -> Doc:
        """By id, else by its exact name, the newest."""
        file_id = canonical_id(name)
        file = await self._repository.find_file(file_id) if file_id.startswith(FILE_PREFIX) else None
        file = file or await self._repository.find_file_named(name)
        if file is None:
            raise _no_file(param, name)
        if file["purpose"] != FINE_TUNE:
            message = f"The purpose of {file['_id']} is {file['purpose']}; it must be {FINE_TUNE}."
            raise ApiError(ErrorCode.INVALID_PURPOSE, message, param=param)
        return file

    async def _reserve(self, sent: Sent) -> str:
        """The id of this request's job, fixed before the job is made, so that a repetition finds it."""
        fresh = new_id(JOB_PREFIX, self._clock.now())
        sha256 = hashlib.sha256(sent.body).hexdigest()
        key_id = self._repository.principal.key_id
        if sent.idempotency_key:
            name = f"{key_id}/key/{hashlib.sha256(sent.idempotency_key.encode()).hexdigest()}"
            held = await self._repository.reserve(name, fresh, sha256, self._settings.idempotency_s)
            if held["body_sha256"] != sha256:
                message = "This Idempotency-Key was used with another body."
                raise ApiError(ErrorCode.IDEMPOTENCY_KEY_REUSED, message, param="Idempotency-Key")
        else:
            name = f"{key_id}/body/{sha256}"
            held = await self._repository.reserve(
                name, fresh, sha256, self._settings.retry_hash_s, replace=not sent.is_retry
            )
        return str(held["job"])

    async def _check_limits(self) -> None:
        most = self._settings.max_queued_jobs
        if await self._repository.count_waiting_jobs(most) >= most:
            message = f"{most} jobs of this project wait already."
            headers = {"retry-after": str(RETRY_AFTER_S)}
            raise ApiError(ErrorCode.TOO_MANY_QUEUED_JOBS, message, headers=headers)


def _blank(spec: JobSpec, metadata: Mapping[str, str] | None) -> Doc:
    pairs = None if metadata is None else [{"k": key, "v": value} for key, value in metadata.items()]
    unknown = dict.fromkeys(
        (
            *("queue", "lease", "resolved", "base_digest", "total_steps", "trained_tokens", "last_metrics"),
            *("last_validation", "checkpoint", "finished", "staged", "fine_tuned_model", "error", "finished_at"),
        )
    )
    return {
        **unknown,
        "spec": spec.model_dump(mode="json"),
        "metadata": pairs,
        "trace": current_traceparent(),
        "last_step": 0,
        "strikes": 0,
        "wanted": "run",
        "datasets": {},
        "members": [],
    }


def _no_file(param: str, name: str) -> ApiError:
    return ApiError(ErrorCode.FILE_NOT_FOUND, f"No such file: {name[:200]}", param=param)


def _cancel(phase: str) -> Fact | Literal["done"] | None:
    if phase in ("succeeded", "failed"):
        return None
    return DONE if phase == "cancelled" else JobCancelled()


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
