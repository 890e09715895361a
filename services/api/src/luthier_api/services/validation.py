"""What a create would do, without doing it: its mistakes, and the numbers that a run would use."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.jobs import JobService, WantedJob
from luthier_api.settings import ApiSettings
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.resolve import resolve
from luthier_common.contract.spec import JobSpec, ResolvedHyperparameters
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectMissingError, ObjectStore

MAX_ERRORS = 100
MAX_REPORT_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Mistake:
    """One thing for which the job would be refused, or would fail before its first step."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass
class Plan:
    """What is known of a job that was not made. `is_pending`: a file has not been read yet."""

    mistakes: list[Mistake] = field(default_factory=list)
    is_pending: bool = False
    resolved: ResolvedHyperparameters | None = None
    num_examples: int | None = None
    num_tokens: int | None = None


class ValidationService:
    """Looks at what one principal could create, for one request."""

    def __init__(self, jobs: JobService, objects: ObjectStore, settings: ApiSettings) -> None:
        self._jobs = jobs
        self._objects = objects
        self._settings = settings

    async def plan(self, wanted: WantedJob) -> Plan:
        """Every mistake that can be seen now, in base and files alike."""
        plan = Plan()
        base = await self._find_base(wanted, plan)
        training = await self._look_at(wanted.training_file, "training_file", plan)
        if wanted.validation_file is not None:
            validation = await self._look_at(wanted.validation_file, "validation_file", plan)
            if training is not None and validation is not None and training["_id"] == validation["_id"]:
                message = "The validation file must be another one than the training file."
                plan.mistakes.append(Mistake(ErrorCode.INVALID_VALUE.code, message, "validation_file"))
        verdict = (training or {}).get("verdict") or {}
        plan.num_examples, plan.num_tokens = verdict.get("num_examples"), verdict.get("num_tokens")
        self._check_count(plan)
        if base is not None and training is not None and plan.num_examples and base.get("context_length"):
            spec = JobSpec(
                model=base["_id"],
                training_file=training["_id"],
                seed=wanted.seed or 0,
                hyperparameters=wanted.hyperparameters,
            )
            plan.resolved = resolve(spec, plan.num_examples, base["context_length"])
        return plan

    async def _find_base(self, wanted: WantedJob, plan: Plan) -> Doc | None:
        try:
            return await self._jobs.find_base(wanted)
        except ApiError as error:
            plan.mistakes.append(mistake_of(error))
            return None

    async def _look_at(self, name: str, param: str, plan: Plan) -> Doc | None:
        """A file, with what its verdict holds against it."""
        try:
            file = await self._jobs.find_file(param, name)
        except ApiError as error:
            plan.mistakes.append(mistake_of(error))
            return None
        verdict = file.get("verdict")
        if verdict is None:
            plan.is_pending = True
        elif not verdict["valid"]:
            plan.mistakes += await self._read_mistakes(verdict, param)
        return file

    def _check_count(self, plan: Plan) -> None:
        least, most, found = self._settings.min_examples, self._settings.max_examples, plan.num_examples
        if found is None or plan.mistakes:
            return
        bound = None
        if found < least:
            bound = f"at least {least}"
        elif most is not None and found > most:
            bound = f"at most {most}"
        if bound is not None:
            message = f"Training file has {found} example(s), but must have {bound} examples"
            plan.mistakes.append(Mistake(FailureReason.INVALID_N_EXAMPLES, message, "training_file"))

    async def _read_mistakes(self, verdict: Doc, param: str) -> list[Mistake]:
        """The lines of the report; where it cannot be read, the problem that the verdict names."""
        key = verdict.get("report_key")
        try:
            report = json.loads(await self._objects.read(key, limit_bytes=MAX_REPORT_BYTES)) if key else {}
        except (ObjectMissingError, ValueError):
            report = {}
        found = list(_errors_in(report.get("findings") or (), param))[:MAX_ERRORS]
        problem = verdict.get("problem") or {}
        code, message = problem.get("code", FailureReason.INVALID_FILE), problem.get("message")
        said = message or FailureReason.INVALID_FILE.sentence
        return found or [Mistake(code, said, param, problem.get("line"))]


def mistake_of(error: ApiError) -> Mistake:
    """What a create would have been refused for."""
    return Mistake(error.error.code, error.message, error.param)


def _errors_in(findings: Iterable[Doc], param: str) -> Iterable[Mistake]:
    for found in findings:
        if found["severity"] == "error":
            where = f" ({found['path']})" if found.get("path") else ""
            yield Mistake(found["code"], found["message"] + where, param, found.get("line"))
