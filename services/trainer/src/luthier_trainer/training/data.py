"""Rows of a JSONL file to token ids and labels, by `luthier_text` alone."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier_common.contract.reasons import FailureReason
from luthier_text import IGNORED_LABEL, Refused, TextBundle
from luthier_trainer.training.errors import TrainingError

NUM_GOLDEN_ROWS = 16
_SKIPPED = ("nothing_to_learn", "row_dropped")
_REASONS = {
    "row_too_long": FailureReason.ROW_TOO_LONG,
    "template_refused": FailureReason.TEMPLATE_REFUSED,
}


@dataclass
class TokenRows:
    """Token ids and labels of a file, and how many of a row's tokens are trained on."""

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    num_trained: list[int] = field(default_factory=list)
    golden: list[dict[str, Any]] = field(default_factory=list)
    num_skipped: int = 0
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.input_ids]


def read_rows(
    path: Path, text: TextBundle, max_length: int, on_overlength: Literal["error", "truncate", "drop"]
) -> TokenRows:
    """All rows of a file that can be learnt from; raises `TrainingError` where one cannot be used or none is left."""
    rows = TokenRows()
    for line, row in _read_lines(path):
        made = text.train_row(row, max_length=max_length, on_overlength=on_overlength)
        if isinstance(made, Refused):
            if made.code not in _SKIPPED:
                reason = _REASONS.get(made.code, FailureReason.INVALID_FILE)
                raise TrainingError(reason, f"line {line}: {made.message} ({made.code})")
            rows.num_skipped += 1
            continue
        # Nothing comes before the first token, so it cannot be predicted.
        labels = [IGNORED_LABEL, *made.labels[1:]]
        rows.input_ids.append(made.input_ids)
        rows.labels.append(labels)
        rows.num_trained.append(sum(label != IGNORED_LABEL for label in labels))
        rows.warnings.update(made.warnings)
        if len(rows.golden) < NUM_GOLDEN_ROWS and "truncated" not in made.warnings:
            rows.golden.append({"row": row, "input_ids": made.input_ids, "labels": made.labels})
    if not any(rows.num_trained):
        raise TrainingError(FailureReason.NOTHING_TO_LEARN, "no row holds an assistant message that could be learned")
    return rows


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TrainingError(FailureReason.INVALID_FILE, f"line {number} is not an object")
                yield number, row
    except FileNotFoundError as error:
        raise TrainingError(FailureReason.FILE_MISSING, "a data file is not there") from error
    except ValueError as error:
        raise TrainingError(FailureReason.INVALID_FILE, f"line {number} is not JSON") from error
