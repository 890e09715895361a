"""Strict JSON: one value per line, and everything that lenient readers let through, said with its path."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from luthier_datachecks.findings import Limits, Problem

# Strings are matched whole, also where they do not end, so that no input makes this quadratic.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SHOWN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_MAX_INT_DIGITS = 20
INT_MIN, INT_MAX = -(2**63), 2**64 - 1


class Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    duplicates: tuple[str, ...] = ()


class _BadNumber:
    """Stands where a number stood that JSON does not have or 64 bits do not hold."""


BAD_NUMBER: Final = _BadNumber()


def parse_line(line: bytes, limits: Limits) -> tuple[Any, list[Problem]]:
    """The value of a line and what is wrong with it as JSON; with problems the value is of no use."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, [Problem("invalid_utf8", message=f"The line is not valid UTF-8 at byte {error.start + 1}.")]
    if _is_too_deep(line, limits.max_depth):
        return None, [Problem("too_deep", message=f"The nesting is deeper than {limits.max_depth}.")]
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return None, [Problem("invalid_json", message=f"{error.msg} (character {error.pos + 1} of the line).")]
    return value, list(islice(_walk(value, "", limits), limits.max_findings_per_line))


def child_path(path: str, key: str) -> str:
    """The path of a key; a key that is not a plain name is not repeated."""
    shown = key if _SHOWN_KEY.fullmatch(key) else "?"
    return f"{path}.{shown}" if path else shown


def _make_object(pairs: list[tuple[str, Any]]) -> Object:
    made = Object(pairs)
    if len(made) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        made.duplicates = tuple(key for key, count in counts.items() if count > 1)
    return made


def _parse_int(digits: str) -> int | _BadNumber:
    if len(digits) > _MAX_INT_DIGITS:
        return BAD_NUMBER
    value = int(digits)
    return value if INT_MIN <= value <= INT_MAX else BAD_NUMBER


def _parse_float(digits: str) -> float | _BadNumber:
    value = float(digits)
    return value if math.isfinite(value) else BAD_NUMBER


def _parse_constant(_: str) -> _BadNumber:
    return BAD_NUMBER


_DECODER = json.JSONDecoder(
    object_pairs_hook=_make_object,
    parse_int=_parse_int,
    parse_float=_parse_float,
    parse_constant=_parse_constant,
)


def _is_too_deep(line: bytes, max_depth: int) -> bool:
    if line.count(b"[") + line.count(b"{") <= max_depth:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(line):
        first = line[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def _walk(value: Any, path: str, limits: Limits) -> Iterator[Problem]:
    if isinstance(value, str):
        yield from _check_string(value, path)
    elif isinstance(value, Object):
        yield from _walk_object(value, path, limits)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, bool | int | float | None):
                yield from _walk(item, f"{path}[{index}]", limits)
    elif isinstance(value, _BadNumber):
        yield Problem("not_a_number", path)


def _walk_object(value: Object, path: str, limits: Limits) -> Iterator[Problem]:
    for key in value.duplicates:
        yield Problem("duplicate_key", child_path(path, key))
    if len(value) > limits.max_keys:
        yield Problem("too_many_keys", path, f"The object has more than {limits.max_keys} keys.")
        return
    for key, item in value.items():
        inner = child_path(path, key)
        yield from _check_string(key, inner)
        yield from _walk(item, inner, limits)


def _check_string(text: str, path: str) -> Iterator[Problem]:
    if "\0" in text:
        yield Problem("nul_character", path)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            yield Problem("lone_surrogate", path)
