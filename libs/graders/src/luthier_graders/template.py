"""Templates: `{{item.answer}}`, `{{sample.output_text}}`, `{{ sample.output_json.steps[0]["a key"] }}`.

A path and nothing else: no expressions, no filters, no attributes of Python objects. What is no string is written as
JSON.
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from luthier_graders.errors import TemplateError, UnfilledError

MAX_PLACES = 256
SAMPLE_NAMES = ("output_text", "output_json", "output_tools", "choices")
_PATH = re.compile(r"""(item|sample)((?:\.[^\s.\[\]{}"']+|\[\d{1,6}\]|\["[^"]*"\]|\['[^']*'\])+)""")
_STEP = re.compile(r"""\.([^\s.\[\]{}"']+)|\[(\d+)\]|\["([^"]*)"\]|\['([^']*)'\]""")
_SHOWN = 120


class Place(NamedTuple):
    """Where a value goes into a template, and where it is found."""

    text: str
    namespace: str
    steps: tuple[str | int, ...]


class Values:
    """What templates may ask for: the row as `item`, the model's answer as `sample`."""

    def __init__(self, output_text: str, item: Mapping[str, Any]) -> None:
        self._output_text = output_text
        self._item = item

    @cached_property
    def _output_json(self) -> Any:
        """The answer read as JSON; UnfilledError when it is none."""
        try:
            return json.loads(self._output_text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            message = "sample.output_json is not there: the answer is not JSON"
            raise UnfilledError(message, "sample_parse") from None

    def find(self, place: Place) -> str:
        """The value as text; UnfilledError when nothing is there."""
        steps, value = place.steps, dict[str, Any](self._item) if place.namespace == "item" else self._sample(place)
        for step in steps if place.namespace == "item" else steps[1:]:
            value = _inside(value, step, place)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def _sample(self, place: Place) -> Any:
        name = place.steps[0]
        if name == "output_text":
            return self._output_text
        if name == "output_json":
            return self._output_json
        raise _not_there(place)


def read_template(text: str) -> tuple[str | Place, ...]:
    """The text's literal parts and places; TemplateError names the place that cannot be read."""
    parts: list[str | Place] = []
    at = 0
    while (start := text.find("{{", at)) >= 0:
        end = text.find("}}", start + 2)
        if end < 0:
            raise TemplateError("has {{ without }}")
        parts += [text[at:start], _read_place(text[start + 2 : end])]
        at = end + 2
        if len(parts) > 2 * MAX_PLACES:
            raise TemplateError(f"has more than {MAX_PLACES} places {{{{...}}}}")
    return (*parts, text[at:])


def fill(text: str, values: Values, max_chars: int) -> str | None:
    """The text with every place filled; None when it would be longer than allowed."""
    filled, length = [], 0
    for part in read_template(text):
        filled.append(part if isinstance(part, str) else values.find(part))
        length += len(filled[-1])
        if length > max_chars:
            return None
    return "".join(filled)


def _read_place(text: str) -> Place:
    path = text.strip()
    match = _PATH.fullmatch(path)
    if match is None:
        raise TemplateError(f"{{{{{path[:_SHOWN]}}}}} is no path like item.name or sample.output_text")
    steps = tuple(_step(found) for found in _STEP.finditer(match[2]))
    if match[1] == "sample" and steps[0] not in SAMPLE_NAMES:
        raise TemplateError(f"{{{{{path[:_SHOWN]}}}}}: a sample has {', '.join(SAMPLE_NAMES)}")
    return Place(path, match[1], steps)


def _step(found: re.Match[str]) -> str | int:
    name, index, *quoted = found.groups()
    return int(index) if index is not None else next(text for text in (name, *quoted) if text is not None)


def _inside(value: Any, step: str | int, place: Place) -> Any:
    if isinstance(value, dict) and isinstance(step, str) and step in value:
        return value[step]
    if isinstance(value, list) and (isinstance(step, int) or (step.isascii() and step.isdigit() and len(step) < 7)):
        index = int(step)
        if index < len(value):
            return value[index]
    raise _not_there(place)


def _not_there(place: Place) -> UnfilledError:
    return UnfilledError(f"{place.text[:_SHOWN]} is not there", "invalid_variable")


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)
