"""The model object. Names are opaque: nothing here reads them."""

from typing import Literal, NotRequired

from luthier_api.domain import View
from luthier_api.wire.described import Described, describe
from luthier_api.wire.lists import unix
from luthier_common.kit.mongo import Doc


class ModelObject(Described):
    """`x_base` and `x_job` of tuned models, `x_context_length` and `x_aliases` of bases."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    x_base: NotRequired[str]
    x_job: NotRequired[str]
    x_context_length: NotRequired[int | None]
    x_aliases: NotRequired[list[str]]


def dressed(model: ModelObject, view: View) -> ModelObject:
    """The object with what the dialect's clients need beside."""
    if view.dialect == "mka1":
        return {**model, **describe(model.get("x_base"), model.get("x_context_length"))}
    return model


def tuned_object(model: Doc, view: View) -> ModelObject:
    return {
        "id": model["name"],
        "object": "model",
        "created": unix(model["created_at"]),
        "owned_by": model["org"],
        "x_base": model["base"],
        "x_job": view.id(model["job"]),
    }


def checkpoint_model_object(name: str, job: Doc, saved: Doc, view: View) -> ModelObject:
    """A checkpoint as a model: it can be called and looked at, and is not listed."""
    return {
        "id": name,
        "object": "model",
        "created": unix(saved["at"]),
        "owned_by": job["org"],
        "x_base": job["spec"]["model"],
        "x_job": view.id(job["_id"]),
    }


def base_object(base: Doc) -> ModelObject:
    return {
        "id": base["_id"],
        "object": "model",
        "created": unix(base["created_at"]) if base.get("created_at") else 0,
        "owned_by": "system",
        "x_context_length": base.get("context_length"),
        "x_aliases": base.get("aliases") or [],
    }
