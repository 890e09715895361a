"""The job object. What is not known is null; what a run resolved replaces `auto`."""

from datetime import timedelta
from typing import Any

from luthier_api.wire.lists import Wire, unix
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
    "fine_tuned_model",
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
_NOT_CHOSEN = ("seed", "total_steps")


def job_object(job: Doc) -> Wire:
    spec = job["spec"]
    hyperparameters = _hyperparameters(job)
    staged = job.get("staged") or {}
    return {
        "id": job["_id"],
        "object": "fine_tuning.job",
        "created_at": unix(job["created_at"]),
        "finished_at": unix(job.get("finished_at")),
        "model": spec["model"],
        "fine_tuned_model": job.get("fine_tuned_model"),
        "organization_id": job["org"],
        "status": job["status"],
        "hyperparameters": hyperparameters,
        "method": {"type": spec["method"], spec["method"]: {"hyperparameters": hyperparameters}},
        "training_file": spec["training_file"],
        "validation_file": spec.get("validation_file"),
        "result_files": [staged["result_file_id"]] if staged.get("result_file_id") else [],
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
        "x_queue": _queue(job),
    }


def metadata_object(job: Doc) -> dict[str, str] | None:
    """Metadata is stored as pairs, so that no key of a user is ever a field name of the database."""
    pairs = job.get("metadata")
    return None if pairs is None else {pair["k"]: pair["v"] for pair in pairs}


def _hyperparameters(job: Doc) -> dict[str, Any]:
    resolved = job.get("resolved")
    if resolved:
        return {name: value for name, value in resolved.items() if name not in _NOT_CHOSEN}
    return {name: value for name, value in job["spec"]["hyperparameters"].items() if value is not None}


def _error(job: Doc) -> Wire | None:
    problem = job.get("error")
    if not problem:
        return None
    shown = {name: problem.get(name) for name in ("code", "message", "param", "owner", "retryable")}
    return shown | ({"line": problem["line"]} if problem.get("line") is not None else {})


def _queue(job: Doc) -> Wire | None:
    """Why the job waits and where; null when it does not wait."""
    queue = job.get("queue")
    if job["phase"] != "waiting" or not queue:
        return None
    return {name: queue.get(name) for name in ("position", "reason", "message")}


def _estimated_finish(job: Doc) -> int | None:
    """From the measured time of a step, while steps are being made."""
    total, step_time_s = job.get("total_steps"), job.get("step_time_s")
    if job["phase"] != "training" or not total or not step_time_s:
        return None
    left_s = max(0, total - (job.get("last_step") or 0)) * step_time_s
    return unix(job["updated_at"] + timedelta(seconds=left_s))
