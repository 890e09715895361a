"""Names, lineage, what an artifact may hold, and what is to become of a staged model. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from luthier_common.contract.events import RunFinished
from luthier_common.contract.ids import FILE_PREFIX, MODEL_PREFIX
from luthier_common.kit.bases import version_of
from luthier_common.kit.errors import LuthierError

Doc = Mapping[str, Any]

MANIFEST_FILE = "manifest.json"
ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
MODEL_FILES = frozenset({"config.json", "model.safetensors"})
TEXT_FILES = frozenset({"tokenizer.json", "chat_template.jinja", "text.json"})
ALLOWED_FILES = ADAPTER_FILES | MODEL_FILES | TEXT_FILES | {"generation_config.json", "golden.json", "training.json"}
"""All that is ever published: nothing that a loader could run."""
HUB_IDS = {"SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
WEIGHTS_FILES = ADAPTER_FILES | MODEL_FILES | {"generation_config.json"}
"""What users get of a model as files of their own."""
RESULT_FILENAME = "step_metrics.csv"
RESULT_PURPOSE = "fine-tune-results"
_AT_WORK = ("trained", "staged", "verified")


class ArtifactCorruptError(LuthierError):
    """The artifact is not what its manifest says, or not what a model may consist of."""

    code = "artifact_corrupt"


class ArtifactFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ArtifactManifest(BaseModel):
    """The part of a finished run's manifest that publishing needs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    files: tuple[ArtifactFile, ...]


class Fate(Enum):
    """What a staged model waits for."""

    WAIT = "wait"
    PUBLISH = "publish"
    DELETE = "delete"


def read_artifact_manifest(content: bytes) -> ArtifactManifest:
    """The manifest of a publishable model. Raises ArtifactCorruptError."""
    try:
        manifest = ArtifactManifest.model_validate_json(content)
    except ValueError as error:
        raise ArtifactCorruptError(f"{MANIFEST_FILE} cannot be read") from error
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise ArtifactCorruptError(f"{MANIFEST_FILE} names a file twice")
    if strangers := sorted(set(names) - ALLOWED_FILES):
        raise ArtifactCorruptError(f"a model may not hold {strangers[0][:100]!r}")
    if not (set(names) >= ADAPTER_FILES or set(names) >= MODEL_FILES):
        raise ArtifactCorruptError(f"{MANIFEST_FILE} names no weights with their configuration")
    if missing := sorted(TEXT_FILES - set(names)):
        raise ArtifactCorruptError(f"{MANIFEST_FILE} does not name {missing[0]}")
    return manifest


def weights_files_of(model_id: str, files: Iterable[ArtifactFile]) -> list[dict[str, Any]]:
    """The ids that the weights of a model have as files, and what each holds; the same for whoever computes it."""
    weights = sorted((file for file in files if file.name in WEIGHTS_FILES), key=lambda file: file.name)
    stem = model_id.replace(MODEL_PREFIX, FILE_PREFIX)
    return [{"id": f"{stem}w{number}", **file.model_dump()} for number, file in enumerate(weights)]


def short_names(base: Doc | None, asked: str, suffix: str | None) -> list[str]:
    """`ft:<base>:<suffix>` by each name of the base: it has no id, so it means the newest model of that name."""
    if not suffix:
        return []
    names = [base["_id"], *base.get("aliases", ())] if base else [asked]
    return [f"ft:{name}:{suffix}" for name in dict.fromkeys(names)]


def aliases_of(name: str) -> list[str]:
    """Other names by which users may ask for a base model."""
    hub_id = HUB_IDS.get(name, name)
    return sorted({hub_id, hub_id.lower(), name.lower()} - {name})


def trace_of(job: Doc) -> str | None:
    """The trace of the attempt that made the model; of the job's creation where the trainer told none."""
    found = job.get("run_trace") or job.get("trace")
    return None if found is None else str(found)


def lineage_of(job: Doc, base: dict[str, Any] | None, finished: RunFinished, now: datetime) -> dict[str, Any]:
    """Where a model comes from. What is not known is None; texts are never part of it."""
    spec, datasets = job["spec"], job.get("datasets") or {}
    pinned = version_of(base, job["base_digest"]) if base else None
    return {
        "job": job["_id"],
        "attempt": job["attempt"],
        "generation": job["generation"],
        "method": spec["method"],
        "files": [
            {"role": role, "file_id": file["file_id"], "sha256": file["sha256"], "num_examples": file["num_examples"]}
            for role, file in sorted(datasets.items())
            if file
        ],
        "base": {
            "name": base["_id"] if base else spec["model"],
            "digest": job["base_digest"],
            "revision": pinned.get("revision") if pinned else None,
        },
        "hyperparameters": job["resolved"],
        "seed": (job["resolved"] or {}).get("seed", spec["seed"]),
        "library_versions": dict(finished.library_versions),
        "step": finished.step,
        "trained_tokens": finished.trained_tokens,
        "train_loss": finished.train_loss,
        "valid_loss": finished.valid_loss,
        "created": now,
    }


def fate_of(model: Doc, job: Doc | None) -> Fate:
    """A staged model becomes visible when its job has succeeded with it, and goes when that can no longer happen."""
    if job is None or job["generation"] != model["lineage"]["generation"]:
        return Fate.DELETE
    if job["phase"] == "succeeded":
        return Fate.PUBLISH if (job.get("staged") or {}).get("model_id") == model["_id"] else Fate.DELETE
    return Fate.WAIT if job["phase"] in _AT_WORK else Fate.DELETE
