"""The job event list: `render` turns one row of the projection into the lines that clients read. Pure.

A fact may be several lines, or none. Clients parse these sentences, so they are part of the contract.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.lists import Wire, unix
from luthier_common.contract.ids import core_of
from luthier_common.kit.mongo import Doc

_ID = re.compile(r"ftevent-([0-9A-Za-z]+)-(\d{6,12})\.(\d{1,3})")
_FILES = ("training_file", "validation_file")
_METRICS = ("train_loss", "train_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")
_MORE = ("learning_rate", "grad_norm", "epoch", "trained_tokens", "tokens_per_s")


Level = Literal["info", "warn", "error"]


class EventObject(TypedDict):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: Wire | None


@dataclass(frozen=True)
class Line:
    message: str
    level: Level = "info"
    type: Literal["message", "metrics"] = "message"
    data: Wire | None = None


@dataclass(frozen=True)
class Place:
    """Where a line stands in its job's list."""

    seq: int
    number: int


def render(row: Doc, view: View) -> list[EventObject]:
    """The lines of one fact, oldest first. A fact of a type that this version does not know gives none."""
    body = _as_spelled(row["body"], view)
    lines = _LINES.get(row["type"], _nothing)(body["data"], body)
    at = row["at"] if isinstance(row["at"], datetime) else datetime.fromisoformat(row["at"])
    return [
        {
            "id": f"ftevent-{core_of(row['thing'])}-{row['seq']:06d}.{number}",
            "object": "fine_tuning.job.event",
            "created_at": unix(at),
            "level": line.level,
            "message": line.message,
            "type": line.type,
            "data": line.data,
        }
        for number, line in enumerate(lines, 1)
    ]


def _as_spelled(body: Wire, view: View) -> Wire:
    """The fact with the ids that lines name as the client's dialect spells them."""
    data = dict(body["data"])
    if "file_id" in data:
        data["file_id"] = view.id(data["file_id"])
    if "spec" in data:
        files = {name: view.id(data["spec"][name]) for name in _FILES if data["spec"].get(name)}
        data["spec"] = data["spec"] | files
    return body | {"thing": view.id(body["thing"]), "data": data}


def place_of(event_id: str, job_id: str) -> Place | None:
    """Where the line with this id stands; None when it is no line of this job."""
    match = _ID.fullmatch(event_id)
    if match is None or match[1] != core_of(job_id):
        return None
    return Place(int(match[2]), int(match[3]))


def _nothing(_data: Wire, _body: Wire) -> list[Line]:
    return []


def _says(message: str, level: Level = "info") -> Callable[[Wire, Wire], list[Line]]:
    return lambda _data, _body: [Line(message, level)]


def _created(data: Wire, body: Wire) -> list[Line]:
    spec = data["spec"]
    also = f" and validation file: {spec['validation_file']}" if spec.get("validation_file") else ""
    return [
        Line(f"Created fine-tuning job: {body['thing']}"),
        Line(f"Validating training file: {spec['training_file']}{also}"),
    ]


def _dataset(data: Wire, _body: Wire) -> list[Line]:
    counts = {name: data[name] for name in ("role", "num_examples", "num_tokens", "num_trained_tokens")}
    return [Line(f"Dataset '{data['file_id']}' processed successfully", data=counts)]


def _queued(data: Wire, _body: Wire) -> list[Line]:
    return [Line(data["message"], data={"reason": data["reason"]})]


def _placed(data: Wire, _body: Wire) -> list[Line]:
    nodes = ", ".join(member["node"] for member in data["members"])
    step = data.get("resumes_from_step")
    begin = f", going on from step {step}" if step else ""
    return [Line(f"Job placed on {nodes} as attempt {data['attempt']}{begin}")]


def _started(data: Wire, body: Wire) -> list[Line]:
    attempt, step = body["attempt"], data.get("resumed_from_step")
    if step:
        return [Line(f"Fine-tuning job resumed from step {step} (attempt {attempt})")]
    again = f" (attempt {attempt})" if attempt > 1 else ""
    return [Line(f"Fine-tuning job started{again}")]


def _step(data: Wire, _body: Wire) -> list[Line]:
    losses = []
    if data.get("train_loss") is not None:
        losses.append(f"training loss={data['train_loss']:.4f}")
    if data.get("full_valid_loss") is not None:
        losses.append(f"full validation loss={data['full_valid_loss']:.4f}")
    measured = {name: data[name] for name in (*_METRICS, *_MORE) if data.get(name) is not None}
    metrics = {"step": data["step"], "total_steps": data["total_steps"], **measured}
    return [Line(f"Step {data['step']}/{data['total_steps']}: {', '.join(losses)}", type="metrics", data=metrics)]


def _checkpoint_rejected(data: Wire, _body: Wire) -> list[Line]:
    step = data.get("falls_back_to_step")
    instead = f"the run goes on from step {step}" if step else "the run starts again"
    return [Line(f"Checkpoint of step {data['step']} cannot be used: {data['problem']}; {instead}", "warn")]


def _run_paused(data: Wire, _body: Wire) -> list[Line]:
    at = f" at step {data['step']}" if data.get("step") else ""
    return [Line(f"Fine-tuning job paused{at}")]


def _run_lost(data: Wire, body: Wire) -> list[Line]:
    message = f"Attempt {body['attempt']} was lost ({data['reason']}); the job will be tried again"
    return [Line(message, "warn", data={"reason": data["reason"]})]


def _run_failed(data: Wire, body: Wire) -> list[Line]:
    if not data["retryable"]:
        return _failed(data, body)
    problem = data["problem"]
    message = f"Attempt {body['attempt']} failed: {problem['message']}; the job will be tried again"
    return [Line(message, "warn", data={"code": problem["code"]})]


def _failed(data: Wire, _body: Wire) -> list[Line]:
    problem = data["problem"]
    shown = {name: problem[name] for name in ("code", "param", "line", "owner") if problem.get(name) is not None}
    return [Line(f"Fine-tuning job failed: {problem['message']}", "error", data=shown)]


def _registered(data: Wire, _body: Wire) -> list[Line]:
    return [
        Line(f"New fine-tuned model created: {data['model_name']}"),
        Line("The job has successfully completed"),
    ]


_LINES: dict[str, Callable[[Wire, Wire], list[Line]]] = {
    "JobCreated": _created,
    "DatasetProcessed": _dataset,
    "DataAccepted": _says("Files validated, moving job to queued state"),
    "DataRejected": _failed,
    "QueueReasonChanged": _queued,
    "JobPlaced": _placed,
    "RunStarted": _started,
    "StepCompleted": _step,
    "ValidationCompleted": _step,
    "CheckpointSaved": lambda data, _body: [Line(f"Checkpoint created at step {data['step']}")],
    "CheckpointRejected": _checkpoint_rejected,
    "PauseRequested": _says("Pause requested; the run saves a checkpoint and leaves its slots"),
    "JobPaused": _says("Fine-tuning job paused"),
    "RunPaused": _run_paused,
    "JobResumed": _says("Fine-tuning job resumed, moving job to queued state"),
    "RunLost": _run_lost,
    "RunFailed": _run_failed,
    "RunFinished": _says("Training completed successfully"),
    "ArtifactStaged": _says("Model files verified and stored"),
    "ServingVerified": _says("The model answered a test request"),
    "ServingSkipped": lambda data, _body: [Line(f"The model is published untried: {data['reason']}", "warn")],
    "ServingRefused": _failed,
    "ModelRegistered": _registered,
    "JobFailed": _failed,
    "JobCancelled": _says("Fine-tuning job cancelled"),
    "JobRestarted": lambda _data, body: [Line(f"Fine-tuning job restarted (run {body['generation']} of the job)")],
    "JobDeleted": _says("Fine-tuning job deleted"),
}


def rendered_types() -> set[str]:
    """The types of facts that have lines."""
    return set(_LINES)


def metrics_of(data: dict[str, Any]) -> dict[str, float]:
    """A checkpoint's metrics: numbers only, what is not known is left out."""
    return {"step": data["step"], **{name: data["metrics"][name] for name in data["metrics"]}}
