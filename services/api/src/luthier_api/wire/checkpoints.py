"""The checkpoint object, made from the fact that a checkpoint was saved."""

import re
from typing import Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.events import metrics_of
from luthier_api.wire.lists import unix
from luthier_common.contract.ids import core_of, model_id_of, model_name
from luthier_common.kit.mongo import Doc


class CheckpointObject(TypedDict):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


def checkpoint_object(row: Doc, job: Doc, org_name: str, view: View) -> CheckpointObject:
    data = row["body"]["data"]
    return {
        "id": f"ftckpt_{core_of(row['thing'])}{row['seq']:06d}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": unix(row["at"]),
        "fine_tuned_model_checkpoint": f"{_model_name(job, org_name)}:ckpt-step-{data['step']}",
        "fine_tuning_job_id": view.id(row["thing"]),
        "step_number": data["step"],
        "metrics": metrics_of(data),
    }


def seq_of(checkpoint_id: str, job_id: str) -> int | None:
    """The seq behind a checkpoint's id; None when it is no checkpoint of this job."""
    prefix = f"ftckpt_{core_of(job_id)}"
    rest = checkpoint_id.removeprefix(prefix)
    return int(rest) if checkpoint_id.startswith(prefix) and re.fullmatch(r"\d{6,12}", rest) else None


def _model_name(job: Doc, org_name: str) -> str:
    """The job's model name; before it has one, the name that it would have."""
    staged = job.get("staged")
    if staged:
        return str(staged["model_name"])
    spec = job["spec"]
    return model_name(spec["model"], org_name, spec.get("suffix"), model_id_of(job["_id"], job["generation"]))
