"""What the file-validator measures."""

from luthier_common.kit.telemetry import meter
from luthier_file_validator.checks import CheckReport

_rows = meter().create_counter("luthier.validator.rows", "{row}", "Rows that were read, by whether they can be used")


def begin_counting() -> None:
    """Say zero before the first row is read."""
    for verdict in ("good", "bad"):
        _rows.add(0, {"verdict": verdict})


def count_rows(report: CheckReport) -> None:
    """The rows of one reading of a file; a job reads its files again with its own base."""
    _rows.add(max(0, report.num_lines - report.num_bad_lines), {"verdict": "good"})
    _rows.add(report.num_bad_lines, {"verdict": "bad"})
