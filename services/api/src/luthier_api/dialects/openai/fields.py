"""What request bodies are made of: strict objects, numbers in ranges, metadata. Pure."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator

MAX_WHOLE = 2**53
"""Larger whole numbers are not exact in every client, and beyond 64 bits no database takes them."""
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
_HUGE = 1e300


class Strict(BaseModel):
    """A request: unknown fields are refused, and errors never repeat what was sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def number(
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
    auto: bool = False,
    above: bool = False,
    below: bool = False,
) -> PlainValidator:
    """A JSON number in a range; null means: not given. `above` excludes the lower end, `below` the upper one."""
    return PlainValidator(_check(low, min(high, MAX_WHOLE) if whole else high, whole, auto, above, below))


def _check(low: float, high: float, whole: bool, auto: bool, above: bool, below: bool) -> Callable[[Any], Any]:
    words = [
        *(["'auto' or"] if auto else []),
        "a whole number" if whole else "a number",
        f"{'above' if above else 'from'} {low:.16g}",
        *([f"to {'below ' if below else ''}{high:.16g}"] if high < math.inf else []),
    ]

    def check(value: Any) -> Any:
        if value is None or (auto and value == "auto"):
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE
        is_allowed = is_number and low <= value <= high and (not whole or value == int(value))
        if not is_allowed or (above and value == low) or (below and value == high):
            raise ValueError(f"must be {' '.join(words)}")
        return int(value) if whole else float(value)

    return check


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise ValueError(f"must be an object with at most {MAX_METADATA} pairs")
    for key, text in value.items():
        if not isinstance(key, str) or len(key) > MAX_METADATA_KEY:
            raise ValueError(f"keys must have at most {MAX_METADATA_KEY} characters")
        if not isinstance(text, str) or len(text) > MAX_METADATA_VALUE:
            raise ValueError(f"values must be strings of at most {MAX_METADATA_VALUE} characters")
    return value


AutoInt = int | Literal["auto"] | None
AutoFloat = float | Literal["auto"] | None
Epochs = Annotated[AutoInt, number(1, 50, whole=True, auto=True)]
BatchSize = Annotated[AutoInt, number(1, 256, whole=True, auto=True)]
Multiplier = Annotated[AutoFloat, number(0, auto=True, above=True)]
Share = Annotated[float | None, number(0, 1)]
Dropout = Annotated[float | None, number(0, 1, below=True)]
Metadata = Annotated[dict[str, str] | None, PlainValidator(_metadata)]
Seed = Annotated[int | None, number(-MAX_WHOLE, whole=True)]
N_EPOCHS = "Passes over the training file, 1 to 50; auto or null: chosen by the number of examples."
BATCH_SIZE = "Rows per optimiser step, 1 to 256; auto or null: about 0.2 % of the examples."
MULTIPLIER = "Times the base rate of the method, above 0; auto or null: 1. Excludes learning_rate."
