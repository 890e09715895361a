"""The second loop: a job's files are read with the job's own base, as the trainer will read them."""

import logging
import math
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec

from luthier_common.contract.events import DataAccepted, DataRejected, DatasetProcessed, Problem
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.spec import JobSpec
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.telemetry import span_of, use_traceparent
from luthier_file_validator.checker import Checker, Rules
from luthier_file_validator.checks import CheckReport, RowRule
from luthier_file_validator.settings import FileValidatorSettings
from luthier_file_validator.store import Store
from luthier_file_validator.verdicts import (
    ROLES,
    Role,
    crash_report,
    files_of,
    readiness,
    row_problem,
    same_bytes_warning,
)
from luthier_file_validator.workers import Waiting, Workers

log = logging.getLogger(__name__)
HORIZON = 2000
"""So many of the oldest jobs are looked at each time, for rejections and for the projects that take turns."""
LOOK_AGAIN_S = 1.0
"""While what was found waits for a place."""


class JobLoop:
    def __init__(self, store: Store, checker: Checker, workers: Workers, settings: FileValidatorSettings) -> None:
        self._store = store
        self._checker = checker
        self._workers = workers
        self._settings = settings
        self._looked_at_s = -math.inf

    async def look(self) -> None:
        """Reject what can never be read, start what can be read now; does not wait for checks.

        While work that was found waits for a place, the jobs are looked at now and then only: of many that wait, each
        look would take longer than the checks that it starts.
        """
        self._workers.start()
        if self._workers.has_offers and time.monotonic() - self._looked_at_s < LOOK_AGAIN_S:
            return
        await self._find_work()
        self._workers.start()
        self._looked_at_s = time.monotonic()

    async def _find_work(self) -> None:
        """Among the oldest jobs, and on until there is any."""
        held = await self._store.held_leases("check/")
        self._workers.forget_offers()
        num_looked_at = 0
        async for page in self._store.checking_jobs():
            files = await self._store.read_files(_named_files(page))
            for job in page:
                try:
                    await self._look_at(job, files, held)
                except (ValueError, LookupError, TypeError):
                    # One job that cannot be read must not keep all others from being checked.
                    log.exception("the job cannot be checked", extra={"job_id": job["_id"]})
            num_looked_at += len(page)
            if num_looked_at >= HORIZON and self._workers.has_offers:
                break

    async def _look_at(self, job: Doc, files: dict[str, Doc], held: set[str]) -> None:
        wanted = files_of(JobSpec.model_validate(job["spec"]))
        ready = readiness({role: files.get(file_id) for role, file_id in wanted.items()})
        if isinstance(ready, Problem):
            await self._reject(job, ready)
        elif ready and (name := f"check/{job['_id']}") not in held:
            num_bytes = sum(files[file_id]["bytes"] for file_id in wanted.values())
            self._workers.offer(Waiting(name, job["project"], num_bytes, partial(self._check, job["_id"])))

    async def _check(self, job_id: str) -> None:
        job = await self._store.read_job(job_id)
        if job is None or job["phase"] != "checking":
            return
        with span_of("validator.check_job", job.get("trace"), {"job.id": job_id}):
            await self._check_files(job)

    async def _check_files(self, job: Doc) -> None:
        spec = JobSpec.model_validate(job["spec"])
        base = await self._store.read_base(spec.model)
        bundle = await self._checker.find_bundle(spec.model) if base is not None else None
        if base is None or bundle is None:
            problem = Problem(
                code=FailureReason.BASE_MISSING, message=FailureReason.BASE_MISSING.sentence, param="model"
            )
            await self._reject(job, problem)
            return
        wanted = files_of(spec)
        files = await self._store.read_files(list(wanted.values()))
        rows = RowRule(spec.hyperparameters.longest_row(base["context_length"]), spec.hyperparameters.on_overlength)
        datasets: dict[Role, Doc] = {}
        for role, file_id in wanted.items():
            known = (job.get("datasets") or {}).get(role)
            dataset = known or await self._process(job, role, files[file_id], files, bundle, rows)
            if dataset is None:
                return
            datasets[role] = dataset
        await failpoint("validator.before_accept")
        training = datasets["training"]
        fact = DataAccepted(num_examples=training["num_examples"], num_tokens=training["num_tokens"])
        accepted = await self._store.state_of_job(job, fact)
        await failpoint("validator.after_accept")
        log.info("accepted", extra={"job_id": job["_id"], "outcome": accepted.outcome})

    async def _process(
        self, job: Doc, role: Role, file: Doc, files: dict[str, Doc], bundle: Path, rows: RowRule
    ) -> Doc | None:
        """Read one file and state its numbers; None when the job was rejected, or is no longer being checked."""
        is_training = role == "training"
        rules = Rules(
            bundle,
            min_examples=self._settings.min_examples if is_training else 1,
            max_examples=self._settings.max_examples if is_training else None,
            file_role=role.capitalize(),
            max_length=rows.max_length,
            on_overlength=rows.on_overlength,
        )
        found = await self._checker.check(file, rules, lease_name=f"check/{job['_id']}")
        problem = found.model_copy(update={"param": f"{role}_file"}) if isinstance(found, Problem) else None
        report = crash_report(found) if isinstance(found, Problem) else found
        if not is_training and files[job["spec"]["training_file"]]["sha256"] == file["sha256"]:
            report = _with_same_bytes(report)
        key = f"{job['org']}/{job['project']}/jobs/{job['_id']}/{role}.report.json"
        await self._store.write_report(key, report, job, f"job/{job['_id']}")
        problem = problem or row_problem(report, role)
        if problem is not None:
            await self._reject(job, problem, key)
            return None
        fact = DatasetProcessed(
            file_id=file["_id"],
            role=role,
            num_examples=report.num_examples,
            num_tokens=report.num_tokens or 0,
            num_trained_tokens=report.num_trained_tokens or 0,
            sha256=file["sha256"],
        )
        stated = await self._store.state_of_job(job, fact)
        await failpoint("validator.after_counted")
        return fact.model_dump(mode="json") if stated.done else None

    async def _reject(self, job: Doc, problem: Problem, report_key: str | None = None) -> None:
        await failpoint("validator.before_reject")
        with use_traceparent(job.get("trace")):
            rejected = await self._store.state_of_job(job, DataRejected(problem=problem, report_key=report_key))
        log.info("rejected", extra={"job_id": job["_id"], "code": problem.code, "outcome": rejected.outcome})


def _named_files(jobs: Iterable[Doc]) -> list[str]:
    """What jobs name as their files, also those whose specification cannot be read."""
    return [name for job in jobs for role in ROLES if (name := (job.get("spec") or {}).get(f"{role}_file"))]


def _with_same_bytes(report: CheckReport) -> CheckReport:
    warning = same_bytes_warning()
    return msgspec.structs.replace(
        report,
        num_warnings=report.num_warnings + 1,
        counts=report.counts | {warning.code: 1},
        findings=[*report.findings, warning],
    )
