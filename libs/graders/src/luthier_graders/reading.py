"""A grader from what a client sent; what is wrong with it is named by its path."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from luthier_graders.errors import InvalidGraderError
from luthier_graders.shapes import Grader

_ADAPTER: TypeAdapter[Grader] = TypeAdapter(Grader)
_MAX_PARAM_CHARS = 200
_CONTENT = "must be a text, a part (input_text, output_text, input_image, input_audio), or a list of these"
_SENTENCES = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a number",
}
_BOUNDS = {
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def read_grader(data: object, at: str = "grader") -> Grader:
    """The grader that `data` describes; InvalidGraderError names the first thing that is wrong, its path from `at`.

    Graders of a multi come as an object by name or as a list of named ones, and are kept by name.
    """
    if not isinstance(data, Mapping):
        raise InvalidGraderError(at, "must be an object")
    try:
        return _ADAPTER.validate_python(dict(data))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        # Of a union that fits in no way, the reason given by our own checks says more than "is no string".
        first = next((each for each in found if _place(each) == _place(found[0]) and _is_ours(each)), found[0])
        raise _invalid(first, at) from None


def _is_ours(error: ErrorDetails) -> bool:
    return error["type"] == "value_error"


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """The path without the types that chose a shape, and not deeper than a message's content."""
    path = list(error["loc"][1:])
    if len(path) > 2 and path[0] == "graders":
        del path[2]
    start = 2 if path[:1] == ["graders"] else 0
    if path[start : start + 1] == ["input"] and path[start + 2 : start + 3] == ["content"]:
        del path[start + 3 :]
    if error["type"].startswith("union_tag"):
        path.append("type")
    return tuple(path)


def _invalid(error: ErrorDetails, at: str) -> InvalidGraderError:
    place = _place(error)
    param = ".".join([at, *(str(step)[:64] for step in place)])[:_MAX_PARAM_CHARS]
    kind = error["type"]
    if place[-1:] == ("content",) and kind != "missing" and not _is_ours(error):
        return InvalidGraderError(param, _CONTENT)
    if kind in ("missing", "union_tag_not_found"):
        return InvalidGraderError(param, "is missing", "missing")
    if kind == "extra_forbidden":
        return InvalidGraderError(param, "is not known", "unknown")
    return InvalidGraderError(param, _sentence(error))


def _sentence(error: ErrorDetails) -> str:
    kind, context = error["type"], dict[str, Any](error.get("ctx", {}))
    if kind == "union_tag_invalid":
        if context["tag"] == "multi":
            return "cannot be multi inside a multi"
        return f"must be one of {context['expected_tags']}".replace("'", "")
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    return _SENTENCES.get(kind) or error["msg"].removeprefix("Value error, ")
