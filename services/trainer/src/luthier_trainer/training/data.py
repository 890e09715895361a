"""Rows of a JSONL file to token ids and labels, by `luthier_text` alone."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier_common.contract.reasons import FailureReason
from luthier_text import IGNORED_LABEL, Refused, TextBundle
from luthier_trainer.training.errors import TrainingError

NUM_GOLDEN_ROWS = 16
NUM_CUT_GOLDEN_ROWS = 2
"""Only where every row is cut, and few: nobody knows how much text each of them leaves out."""
MAX_GOLDEN_BYTES = 8 << 20
"""Verification reads no golden file above 16 MiB."""
_GOLDEN_FIELDS = ("messages", "tools")
"""Of a row: what its ids come from. It may hold anything else, of any size."""
_SKIPPED = ("nothing_to_learn", "row_dropped")
_REASONS = {
    "row_too_long": FailureReason.ROW_TOO_LONG,
    "template_refused": FailureReason.TEMPLATE_REFUSED,
}


@dataclass
class TokenRows:
    """Token ids and labels of a file, and how many of a row's tokens are trained on.

    The rows lie one after another, four bytes an id: as lists they would take ten times as much.
    """

    lengths: list[int] = field(default_factory=list)
    num_trained: list[int] = field(default_factory=list)
    golden: list[dict[str, Any]] = field(default_factory=list)
    num_skipped: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    _input_ids: "array[int]" = field(default_factory=lambda: array("i"), repr=False)
    _labels: "array[int]" = field(default_factory=lambda: array("i"), repr=False)
    _starts: "array[int]" = field(default_factory=lambda: array("q"), repr=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, input_ids: Sequence[int], labels: Sequence[int]) -> None:
        """Add a row."""
        self._starts.append(len(self._input_ids))
        self.lengths.append(len(input_ids))
        self.num_trained.append(sum(label != IGNORED_LABEL for label in labels))
        self._input_ids.extend(input_ids)
        self._labels.extend(labels)

    def input_ids(self, row: int) -> "array[int]":
        return self._row_of(self._input_ids, row)

    def labels(self, row: int) -> "array[int]":
        return self._row_of(self._labels, row)

    def _row_of(self, flat: "array[int]", row: int) -> "array[int]":
        start = self._starts[row]
        return flat[start : start + self.lengths[row]]


class GoldenRows:
    """The first rows that are added: at most so many, and no more bytes of JSON than verification reads."""

    def __init__(self, most: int) -> None:
        self.kept: list[dict[str, Any]] = []
        self._most = most
        self._room_bytes = MAX_GOLDEN_BYTES

    def add(self, golden: dict[str, Any]) -> None:
        if len(self.kept) >= self._most:
            return
        num_bytes = len(json.dumps(golden))
        if num_bytes <= self._room_bytes:
            self.kept.append(golden)
            self._room_bytes -= num_bytes
        elif self.kept:
            self._most = len(self.kept)


def read_rows(
    path: Path,
    text: TextBundle,
    max_length: int,
    on_overlength: Literal["error", "truncate", "drop"],
    on_row: Callable[[], None] = lambda: None,
) -> TokenRows:
    """All rows of a file that can be learnt from; raises `TrainingError` where one cannot be used or none is left."""
    rows = TokenRows()
    whole, cut = GoldenRows(NUM_GOLDEN_ROWS), GoldenRows(NUM_CUT_GOLDEN_ROWS)
    for line, row in _read_lines(path):
        on_row()
        made = text.train_row(row, max_length=max_length, on_overlength=on_overlength)
        if isinstance(made, Refused):
            if made.code not in _SKIPPED:
                reason = _REASONS.get(made.code, FailureReason.INVALID_FILE)
                raise TrainingError(reason, f"line {line}: {made.message} ({made.code})")
            rows.num_skipped += 1
            continue
        # Nothing comes before the first token, so it cannot be predicted.
        rows.append(made.input_ids, [IGNORED_LABEL, *made.labels[1:]])
        rows.warnings.update(made.warnings)
        seen = {name: row[name] for name in _GOLDEN_FIELDS if name in row}
        golden = {"row": seen, "input_ids": made.input_ids, "labels": made.labels}
        if "truncated" not in made.warnings:
            whole.add(golden)
        else:
            cut.add({**golden, "max_length": len(made.input_ids)})
    rows.golden = whole.kept or cut.kept
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
