"""The job object. What is not known is null; what a run resolved replaces `auto`."""

from datetime import timedelta
from typing import Any, Literal, NotRequired, TypedDict

from luthier_api.domain import View
from luthier_api.wire.lists import Wire, unix, unix_or_none
from luthier_common.kit.mongo import Doc

FIELDS = (
    "created_at",
    "updated_at",
    "finished_at",
    "org",
    "phase",
    "status",
    "spec",
    "resolved",
    "metadata",
    "staged",
    "model_name",
    "fine_tuned_model",
    "weights_files",
    "trained_tokens",
    "last_step",
    "total_steps",
    "step_time_s",
    "error",
    "queue",
    "attempt",
    "generation",
)
"""What a job document is read for."""
_NOT_CHOSEN = ("seed", "total_steps", "warmup_ratio")


class JobError(TypedDict):
    """Why a job failed. `owner` says whose fault it is, `retryable` whether trying again can help."""

    code: str
    message: str
    param: str | None
    owner: str | None
    retryable: bool | None
    line: NotRequired[int]


class Queued(TypedDict):
    position: int | None
    reason: str | None
    message: str | None


class JobObject(TypedDict):
    """`x_state` is the exact phase inside the status, `x_queue` where a waiting job stands and why it waits."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: JobError | None
    seed: int
    estimated_finish: int | None
    integrations: list[Wire]
    metadata: dict[str, str] | None
    suffix: str | None
    trained_steps: int
    total_steps: int | None
    x_state: str
    x_attempt: int
    x_queue: Queued | None


def job_object(job: Doc, view: View) -> JobObject:
    spec = job["spec"]
    hyperparameters = _hyperparameters(job)
    return {
        "id": view.id(job["_id"]),
        "object": "fine_tuning.job",
        "created_at": unix(job["created_at"]),
        "finished_at": unix_or_none(job.get("finished_at")),
        "model": spec["model"],
        "fine_tuned_model": job.get("fine_tuned_model"),
        "organization_id": job["org"],
        "status": view.status(job["status"]),  # type: ignore[typeddict-item]  # the life table has these
        "hyperparameters": hyperparameters,
        "method": {"type": spec["method"], spec["method"]: {"hyperparameters": hyperparameters}},
        "training_file": view.id(spec["training_file"]),
        "validation_file": view.id(spec["validation_file"]) if spec.get("validation_file") else None,
        "result_files": [view.id(file_id) for file_id in _result_files(job)],
        "trained_tokens": job.get("trained_tokens"),
        "error": _error(job),
        "seed": spec["seed"],
        "estimated_finish": _estimated_finish(job),
        "integrations": [],
        "metadata": metadata_object(job),
        "suffix": spec.get("suffix"),
        "trained_steps": job.get("last_step") or 0,
        "total_steps": job.get("total_steps"),
        "x_state": job["phase"],
        "x_attempt": job["attempt"],
        "x_queue": queued_object(job),
    }


def metadata_object(job: Doc) -> dict[str, str] | None:
    """Metadata is stored as pairs, so that no key of a user is ever a field name of the database."""
    pairs = job.get("metadata")
    return None if pairs is None else {pair["k"]: pair["v"] for pair in pairs}


def _result_files(job: Doc) -> list[str]:
    """The metrics first, since scripts take the first one; then the weights."""
    metrics = (job.get("staged") or {}).get("result_file_id")
    return [*([metrics] if metrics else []), *(job.get("weights_files") or ())]


def _hyperparameters(job: Doc) -> dict[str, Any]:
    if resolved := job.get("resolved"):
        return shown_hyperparameters(resolved)
    return {name: value for name, value in job["spec"]["hyperparameters"].items() if value is not None}


def shown_hyperparameters(resolved: Doc) -> dict[str, Any]:
    """The numbers of a run, as they replace `auto`."""
    return {name: value for name, value in resolved.items() if name not in _NOT_CHOSEN}


def _error(job: Doc) -> JobError | None:
    problem = job.get("error")
    if not problem:
        return None
    shown: JobError = {
        "code": problem["code"],
        "message": problem["message"],
        "param": problem.get("param"),
        "owner": problem.get("owner"),
        "retryable": problem.get("retryable"),
    }
    if problem.get("line") is not None:
        shown["line"] = problem["line"]
    return shown


def queued_object(job: Doc) -> Queued | None:
    """Why the job waits and where; null when it does not wait."""
    queue = job.get("queue")
    if job["phase"] != "waiting" or not queue:
        return None
    return {"position": queue.get("position"), "reason": queue.get("reason"), "message": queue.get("message")}


def _estimated_finish(job: Doc) -> int | None:
    """From the measured time of a step, while steps are being made."""
    total, step_time_s = job.get("total_steps"), job.get("step_time_s")
    if job["phase"] != "training" or not total or not step_time_s:
        return None
    left_s = max(0, total - (job.get("last_step") or 0)) * step_time_s
    return unix(job["updated_at"] + timedelta(seconds=left_s))
