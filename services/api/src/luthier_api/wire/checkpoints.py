"""The checkpoint object, made from the fact that a checkpoint was saved."""

import re
from typing import Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.events import metrics_of
from luthier_api.wire.lists import unix
from luthier_common.contract.ids import FILE_PREFIX, JOB_PREFIX, core_of, model_id_of, model_name
from luthier_common.kit.mongo import Doc


class CheckpointObject(TypedDict):
    """While `x_callable`, `fine_tuned_model_checkpoint` answers as a model and `result_files` are its weights."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]
    result_files: list[str]
    x_callable: bool


WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")
_CALLED = re.compile(r"(?P<model>.+?)(g(?P<generation>\d{1,6}))?:ckpt-step-(?P<step>\d{1,9})", re.DOTALL)
_FILE = re.compile(rf"{FILE_PREFIX}(?P<core>[0-9a-f]{{24}})c(?P<seq>\d{{6,12}})w(?P<number>[01])")


def checkpoint_object(row: Doc, job: Doc, org_name: str, view: View, *, is_stored: bool) -> CheckpointObject:
    """`is_stored`: its bytes are there, so it can be called and its weights can be read."""
    data = row["body"]["data"]
    return {
        "id": checkpoint_id(row),
        "object": "fine_tuning.job.checkpoint",
        "created_at": unix(row["at"]),
        "fine_tuned_model_checkpoint": _name(job, row, org_name),
        "fine_tuning_job_id": view.id(row["thing"]),
        "step_number": data["step"],
        "metrics": metrics_of(data),
        "result_files": [view.id(file_id) for file_id in weights_files_of(row)] if is_stored else [],
        "x_callable": is_stored,
    }


def checkpoint_id(row: Doc) -> str:
    return f"ftckpt_{core_of(row['thing'])}{row['seq']:06d}"


def weights_files_of(row: Doc) -> list[str]:
    """The ids under which a checkpoint's weights are read as files."""
    return [f"{FILE_PREFIX}{core_of(row['thing'])}c{row['seq']:06d}w{number}" for number in range(len(WEIGHTS))]


def read_weights_file_id(file_id: str) -> tuple[str, int, str] | None:
    """The job, the seq of the fact and the name of the file behind such an id."""
    match = _FILE.fullmatch(file_id)
    return (JOB_PREFIX + match["core"], int(match["seq"]), WEIGHTS[int(match["number"])]) if match else None


def read_called(name: str) -> tuple[str, int, int] | None:
    """The name of the job's model, the job's generation and the step, when this is the name of a checkpoint."""
    match = _CALLED.fullmatch(name)
    return (match["model"], int(match["generation"] or 1), int(match["step"])) if match else None


def seq_of(checkpoint_id: str, job_id: str) -> int | None:
    """The seq behind a checkpoint's id; None when it is no checkpoint of this job."""
    prefix = f"ftckpt_{core_of(job_id)}"
    rest = checkpoint_id.removeprefix(prefix)
    return int(rest) if checkpoint_id.startswith(prefix) and re.fullmatch(r"\d{6,12}", rest) else None


def _name(job: Doc, row: Doc, org_name: str) -> str:
    """The job's model name, which ends in hexadecimal digits, then the generation that saved the checkpoint."""
    spec = job["spec"]
    model = job.get("model_name") or model_name(spec["model"], org_name, spec.get("suffix"), model_id_of(job["_id"], 1))
    generation = row.get("generation", 1)
    return f"{model}{f'g{generation}' if generation > 1 else ''}:ckpt-step-{row['body']['data']['step']}"
