"""The metrics of a run as users get them: one CSV, its first columns OpenAI's, the further ones Azure's. Pure."""

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

COLUMNS: dict[str, str] = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "train_mean_token_accuracy": "train_mean_token_accuracy",
    "validation_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
}
"""Each column with the metric it shows; several show the same one under another provider's name."""
_METRICS = frozenset(COLUMNS.values()) - {"step"}


class StepTable:
    """Collects metric lines, one or more a step; of a metric that was measured twice the later value counts."""

    def __init__(self) -> None:
        self._steps: dict[int, dict[str, float]] = {}
        self.num_unreadable = 0

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                step = int(record["step"])
                values = {name: float(value) for name in _METRICS if (value := record.get(name)) is not None}
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                self.num_unreadable += 1
            else:
                self._steps.setdefault(step, {}).update(values)

    def csv(self) -> bytes:
        """Plain text with a header; a cell is empty where nothing was measured."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for step, values in sorted(self._steps.items()):
            writer.writerow([step, *(_cell(values.get(metric)) for metric in list(COLUMNS.values())[1:])])
        return out.getvalue().encode()


def _cell(value: Any) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)
