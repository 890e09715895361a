"""What a file is: lines to a report, with tokens where a base's text bundle is given. Pure; runs in the child."""

import json
from collections.abc import Iterable

import msgspec

from luthier_datachecks import Finding, Limits, Row, check_lines
from luthier_datachecks.report import ReportBuilder
from luthier_text import Refused, TextBundle, TextError


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found in a file; counts are exact, `findings` holds all of them when `is_complete`.

    Token counts are None when nobody counted or when a row could not be counted.
    """

    num_lines: int = 0
    num_examples: int = 0
    num_tokens: int | None = None
    num_trained_tokens: int | None = None
    num_errors: int = 0
    num_warnings: int = 0
    num_bad_lines: int = 0
    counts: dict[str, int] = {}
    roles: dict[str, int] = {}
    is_complete: bool = True
    findings: list[Finding] = []


class Tally:
    """Tokens of the rows so far, counted with one base."""

    def __init__(self, bundle: TextBundle, max_length: int | None) -> None:
        self._bundle = bundle
        self._max_length = max_length
        self.num_tokens: int | None = 0
        self.num_trained_tokens: int | None = 0 if max_length is not None else None

    def add(self, row: Row) -> Iterable[Finding]:
        """Count a row. With a longest length the row is judged as a job's: what cannot be trained on is an error."""
        example = json.loads(row.data)
        if self._max_length is not None:
            return self._train(row, example, self._max_length)
        try:
            self.num_tokens = None if self.num_tokens is None else self.num_tokens + self._bundle.count(example)
        except TextError:
            # Another base may take the row; only the number is unknown.
            self.num_tokens = None
        return ()

    def _train(self, row: Row, example: dict[str, object], max_length: int) -> Iterable[Finding]:
        made = self._bundle.train_row(example, max_length=max_length, on_overlength="error")
        if isinstance(made, Refused):
            return [_finding(row, made.code, "error", f"The base model refuses the row: {made.message}.")]
        assert self.num_tokens is not None
        assert self.num_trained_tokens is not None
        self.num_tokens += len(made.input_ids)
        self.num_trained_tokens += made.num_trained
        return [
            _finding(row, code, "warning", "The base model reads the row in its own way.") for code in made.warnings
        ]


def examine(
    chunks: Iterable[bytes],
    limits: Limits,
    *,
    bundle: TextBundle | None = None,
    max_length: int | None = None,
    max_findings: int = 1000,
) -> CheckReport:
    """Read a file once. With `bundle` its tokens are counted; with `max_length` too, rows are judged as a job's."""
    builder = ReportBuilder(max_findings)
    tally = Tally(bundle, max_length) if bundle is not None else None
    for found in check_lines(chunks, limits):
        builder.add(found)
        if isinstance(found, Row) and tally is not None:
            for finding in tally.add(found):
                builder.add_finding(finding)
    report = builder.build()
    return CheckReport(
        num_lines=report.num_lines,
        num_examples=report.num_examples,
        num_tokens=tally.num_tokens if tally else None,
        num_trained_tokens=tally.num_trained_tokens if tally else None,
        num_errors=report.num_errors,
        num_warnings=report.num_warnings,
        num_bad_lines=report.num_bad_lines,
        counts=report.counts,
        roles=report.roles,
        is_complete=report.is_complete,
        findings=report.findings,
    )


def _finding(row: Row, code: str, severity: str, message: str) -> Finding:
    return Finding(
        line=row.line,
        byte_offset=row.byte_offset,
        path="",
        code=code,
        severity="error" if severity == "error" else "warning",
        message=message,
    )
