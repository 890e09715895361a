"""The model object. Names are opaque: nothing here reads them."""

from luthier_api.wire.lists import Wire, unix
from luthier_common.kit.mongo import Doc


def tuned_object(model: Doc) -> Wire:
    return {
        "id": model["name"],
        "object": "model",
        "created": unix(model["created_at"]),
        "owned_by": model["org"],
        "x_base": model["base"],
        "x_job": model["job"],
    }


def base_object(base: Doc) -> Wire:
    return {
        "id": base["_id"],
        "object": "model",
        "created": unix(base.get("created_at")) or 0,
        "owned_by": "system",
        "x_context_length": base.get("context_length"),
        "x_aliases": base.get("aliases") or [],
    }
