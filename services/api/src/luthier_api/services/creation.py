"""Making a job: found or made, reserved before it is made, its files' bytes held before it is there."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from luthier_api.services.jobs import JobService, WantedJob, no_file
from luthier_api.services.repeats import Repeat
from luthier_api.services.waiting import InUse, Queue
from luthier_api.store import Repository
from luthier_common.contract.events import JobCreated
from luthier_common.contract.ids import JOB_PREFIX, model_id_of, model_name
from luthier_common.contract.spec import JobSpec
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.telemetry import current_traceparent


@dataclass(frozen=True)
class Sent:
    """How the request came: `core` was reserved for its Idempotency-Key, or `repeat` reserves one by its body."""

    core: str | None
    repeat: Repeat


class JobCreation:
    """Makes jobs of one principal, for one request."""

    def __init__(
        self, repository: Repository, jobs: JobService, queue: Queue, in_use: InUse, max_queued_jobs: int
    ) -> None:
        self._repository = repository
        self._jobs = jobs
        self._queue = queue
        self._in_use = in_use
        self._is_let_in = False
        self._max_queued_jobs = max_queued_jobs

    async def create(self, wanted: WantedJob, sent: Sent) -> Doc:
        """The new job, or the one that an earlier sending of this request has made."""
        try:
            return await self._create(wanted, sent)
        finally:
            if self._is_let_in:
                self._queue.made()

    async def _create(self, wanted: WantedJob, sent: Sent) -> Doc:
        if sent.core is not None and (known := await self._find(sent.core)) is not None:
            return known
        base = await self._jobs.find_base(wanted)
        fresh = sent.core or sent.repeat.fresh
        held, reserved = await asyncio.gather(self._hold(wanted), self._reserve(sent, fresh), return_exceptions=True)
        if isinstance(reserved, BaseException):
            raise reserved
        core, was_used = reserved
        if was_used and (known := await self._find(core)) is not None:
            return known
        if isinstance(held, BaseException):
            raise held
        await failpoint("jobs.after_refer")
        return await self._make(base, held, core, wanted)

    async def _make(self, base: Doc, files: Mapping[str, Doc], core: str, wanted: WantedJob) -> Doc:
        job_id = f"{JOB_PREFIX}{core}"
        spec = JobSpec(
            model=base["_id"],
            training_file=files["training_file"]["_id"],
            validation_file=files["validation_file"]["_id"] if "validation_file" in files else None,
            suffix=wanted.suffix,
            seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
            hyperparameters=wanted.hyperparameters,
        )
        await failpoint("jobs.before_create")
        created = await self._repository.create(JobCreated(spec=spec), job_id, self._fields(spec, job_id, wanted))
        await failpoint("jobs.after_create")
        assert created.doc is not None
        return created.doc

    def _fields(self, spec: JobSpec, job_id: str, wanted: WantedJob) -> Doc:
        name = model_name(spec.model, self._repository.principal.org_name, spec.suffix, model_id_of(job_id, 1))
        return _blank(spec, wanted.metadata) | {"model_name": name}

    async def _reserve(self, sent: Sent, fresh: str) -> tuple[str, bool]:
        """The core of the job's id, and whether a job may be there already."""
        return (fresh, False) if sent.core is not None else await sent.repeat.reserve(self._is_made)

    async def _find(self, core: str) -> Doc | None:
        """A deleted one too: the request that made it is answered with it, and makes no other."""
        return await self._repository.find_made_job(f"{JOB_PREFIX}{core}")

    async def _is_made(self, core: str) -> bool:
        return await self._repository.find_made_job(f"{JOB_PREFIX}{core}", {"_id": 1}) is not None

    async def _hold(self, wanted: WantedJob) -> dict[str, Doc]:
        """The files, in use: no bytes that a job reads are deleted while the job may need them."""
        files = await self._jobs.find_files(wanted)
        await self._queue.take_place(self._repository, self._max_queued_jobs)
        self._is_let_in = True
        for param, file in files.items():
            if not await self._in_use.hold(file):
                raise no_file(param, file["_id"])
        return files


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
