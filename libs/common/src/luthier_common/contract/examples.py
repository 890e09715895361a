"""One realistic message for each fact, made from its fields: the golden files of the contract start as these."""

import types
from datetime import UTC, datetime
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from luthier_common.contract.envelope import Actor, Envelope
from luthier_common.contract.events import Fact
from luthier_common.contract.lifecycle import LIFECYCLES, NEW
from luthier_common.contract.topics import Kind

SOURCE = "luthier/local/1"
_AT = datetime(2026, 11, 21, 11, 9, 18, 250000, UTC)
_SHA256 = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
_CORE = "019a5b3c4d5e6f7081923a4b"
_THINGS = {
    Kind.JOB: f"ftjob-{_CORE}",
    Kind.FILE: f"file-{_CORE}",
    Kind.MODEL: f"ftmodel-{_CORE}",
    Kind.NODE: "node-1",
}
_VALUES: dict[str, Any] = {
    "address": "http://127.0.0.1:8801",
    "attempt": 1,
    "base": "SmolLM2-135M-Instruct",
    "base_digest": _SHA256,
    "base_learning_rate": 0.0002,
    "batch_size": 4,
    "bytes": 4096,
    "code": "lease_expired",
    "context_length": 8192,
    "device": "cpu",
    "epoch": 1.5,
    "file_id": _THINGS[Kind.FILE],
    "filename": "train.jsonl",
    "full_valid_loss": 1.75,
    "full_valid_mean_token_accuracy": 0.625,
    "grad_norm": 0.5,
    "index": 0,
    "job_id": _THINGS[Kind.JOB],
    "key": f"org-default/proj-default/jobs/{_THINGS[Kind.JOB]}/a1/step-12/",
    "latency_s": 0.25,
    "learning_rate": 0.0002,
    "learning_rate_multiplier": 1.0,
    "library_versions": {"peft": "0.19.0", "torch": "2.13.0"},
    "line": 17,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_r": 16,
    "manifest_sha256": _SHA256,
    "max_cost": 2.5,
    "max_duration_s": 3600,
    "max_grad_norm": 1.0,
    "message": "The node that ran the job stopped answering.",
    "metrics": {"train_loss": 1.5},
    "metrics_key": f"org-default/proj-default/jobs/{_THINGS[Kind.JOB]}/a1/metrics.jsonl",
    "model": "SmolLM2-135M-Instruct",
    "model_id": _THINGS[Kind.MODEL],
    "model_name": "ft:SmolLM2-135M-Instruct:default:mine:6f7081923a4b",
    "name": "ft:SmolLM2-135M-Instruct:default:mine:6f7081923a4b",
    "node": _THINGS[Kind.NODE],
    "num_answer_tokens": 16,
    "num_examples": 400,
    "num_findings": 0,
    "num_slots": 1,
    "num_tokens": 51200,
    "num_trained_tokens": 25600,
    "object_key": f"org-default/proj-default/files/{_THINGS[Kind.FILE]}",
    "packing": False,
    "param": "training_file",
    "priority": 0,
    "problem": "model.safetensors has other bytes than its manifest says",
    "purpose": "fine-tune",
    "rank": 0,
    "reason": "no_free_slots",
    "report_key": f"org-default/proj-default/files/{_THINGS[Kind.FILE]}.report.json",
    "report_sha256": _SHA256,
    "result_file_id": _THINGS[Kind.FILE],
    "seed": 42,
    "sha256": _SHA256,
    "slots": 0,
    "step": 12,
    "suffix": "mine",
    "tokens_per_s": 512.0,
    "total_steps": 300,
    "train_loss": 1.5,
    "train_mean_token_accuracy": 0.5,
    "trained_tokens": 6144,
    "training_file": _THINGS[Kind.FILE],
    "valid_loss": 1.75,
    "validation_file": f"file-{_CORE[:-1]}c",
    "warmup_ratio": 0.125,
    "warmup_steps": 9,
    "weight_decay": 0.0,
}
_OF_FACT: dict[str, dict[str, Any]] = {
    "FileGenerated": {"filename": "step_metrics.csv", "purpose": "fine-tune-results"},
    "FileValidated": {"problem": None},
    "JobPlaced": {"resumes_from_step": None},
    "NodeCapacityChanged": {"reason": "operator"},
    "QueueReasonChanged": {"message": "Every node that it fits is busy."},
    "RunLost": {"reason": "lease_expired"},
    "RunStarted": {"resumed_from_step": None},
    "ServingSkipped": {"reason": "no engine has served the base model for 60 s"},
}
_BY_TYPE: dict[Any, Any] = {bool: True, int: 3, float: 0.5, str: "text", dict: {}}


def example_fact(shape: type[Fact]) -> Fact:
    """A valid instance; every field is set where that makes sense."""
    return shape.model_validate(_example(shape) | _OF_FACT.get(shape.__name__, {}))


def example_message(shape: type[Fact]) -> tuple[Envelope, list[tuple[str, bytes]]]:
    """The fact in its envelope, and the headers it is sent with."""
    life = LIFECYCLES[shape.kind]
    rows = [row for row in life.rows if row.fact is shape]
    sources = {source for row in rows for source in row.sources}
    was_placed = shape.kind is Kind.JOB and not sources <= {NEW, "checking"}
    owner = ("system", "system") if shape.kind is Kind.NODE else ("org-default", "proj-default")
    room = rows[0].room.split(", ")[0]
    actor = Actor(key_id="key-1", request_id=f"req-{_CORE}") if room == "api" else Actor(room=room)
    envelope = Envelope(
        kind=shape.kind,
        thing=_THINGS[shape.kind],
        seq=1 if NEW in sources else 7,
        type=shape.__name__,
        at=_AT,
        generation=1,
        attempt=1 if was_placed else 0,
        org=owner[0],
        project=owner[1],
        actor=actor,
        terminal=all(row.target is not None and life.is_final(row.target) for row in rows),
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        data=example_fact(shape).model_dump(mode="json"),
    )
    return envelope, envelope.headers(SOURCE)


def _example(shape: type[BaseModel]) -> dict[str, Any]:
    return {name: _value(name, field.annotation) for name, field in shape.model_fields.items()}


def _value(name: str, annotation: Any) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _value(name, next(part for part in inner if part is not types.NoneType))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _example(annotation)
    if origin is Literal:
        return inner[0]
    if origin is tuple:
        return [_value(name, inner[0])]
    return _VALUES.get(name, _BY_TYPE.get(origin or annotation))
