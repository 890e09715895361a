"""What a file is: lines to a report, with tokens where a base's text bundle is given. Pure; runs in the child."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from luthier_common.contract.spec import OnOverlength
from luthier_datachecks import Finding, Limits, Row, check_lines
from luthier_datachecks.findings import Problem
from luthier_datachecks.report import ReportBuilder
from luthier_text import Refused, TextBundle, TextError

_SAID = {"truncated": "The row is longer than the context length; its end is cut off."}


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found in a file; counts are exact, `findings` holds all but `num_left_out` of them, errors first.

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
    num_left_out: int = 0
    findings: list[Finding] = []


@dataclass(frozen=True, slots=True)
class RowRule:
    """How long a job's rows may be, and what happens to longer ones."""

    max_length: int
    on_overlength: OnOverlength = "error"


class Tally:
    """Tokens of the rows so far, counted with one base. `num_dropped` rows will not be trained on."""

    def __init__(self, bundle: TextBundle, rule: RowRule | None) -> None:
        self._bundle = bundle
        self._rule = rule
        self.num_dropped = 0
        self.num_tokens: int | None = 0
        self.num_trained_tokens: int | None = 0 if rule is not None else None

    def add(self, row: Row) -> Iterable[Finding]:
        """Count a row. With a rule the row is judged as a job's: what cannot be trained on is an error."""
        example = json.loads(row.data)
        if self._rule is not None:
            return self._train(row, example, self._rule)
        try:
            self.num_tokens = None if self.num_tokens is None else self.num_tokens + self._bundle.count(example)
        except TextError:
            # Another base may take the row; only the number is unknown.
            self.num_tokens = None
        return ()

    def check_left(self, num_examples: int, limits: Limits) -> Iterable[Finding]:
        """Whether enough rows are left when the long ones are dropped."""
        left = num_examples - self.num_dropped
        if not self.num_dropped or left >= limits.min_examples:
            return ()
        message = (
            f"{limits.file_role} file has {left} example(s) that are not too long, "
            f"but must have at least {limits.min_examples} examples"
        )
        return [Problem("invalid_n_examples", message=message).at(None, None)]

    def _train(self, row: Row, example: dict[str, object], rule: RowRule) -> Iterable[Finding]:
        made = self._bundle.train_row(example, max_length=rule.max_length, on_overlength=rule.on_overlength)
        if isinstance(made, Refused):
            if made.code == "row_dropped" or (rule.on_overlength == "truncate" and made.code == "nothing_to_learn"):
                self.num_dropped += 1
                return [_finding(row, "row_dropped", "warning", f"The row is left out: {made.message}.")]
            return [_finding(row, made.code, "error", f"The base model refuses the row: {made.message}.")]
        assert self.num_tokens is not None
        assert self.num_trained_tokens is not None
        self.num_tokens += len(made.input_ids)
        self.num_trained_tokens += made.num_trained
        return [
            _finding(row, code, "warning", _SAID.get(code, "The base model reads the row in its own way."))
            for code in made.warnings
        ]


def examine(
    chunks: Iterable[bytes],
    limits: Limits,
    *,
    bundle: TextBundle | None = None,
    rule: RowRule | None = None,
    max_findings: int = 1000,
) -> CheckReport:
    """Read a file once. With `bundle` its tokens are counted; with `rule` too, rows are judged as a job's."""
    builder = ReportBuilder(max_findings)
    tally = Tally(bundle, rule) if bundle is not None else None
    for found in check_lines(chunks, limits):
        builder.add(found)
        if isinstance(found, Row) and tally is not None:
            for finding in tally.add(found):
                builder.add_finding(finding)
    report = builder.build()
    num_dropped = tally.num_dropped if tally else 0
    if tally is not None and num_dropped:
        for finding in tally.check_left(report.num_examples, limits):
            builder.add_finding(finding)
        report = builder.build()
    return CheckReport(
        num_lines=report.num_lines,
        num_examples=report.num_examples - num_dropped,
        num_tokens=tally.num_tokens if tally else None,
        num_trained_tokens=tally.num_trained_tokens if tally else None,
        num_errors=report.num_errors,
        num_warnings=report.num_warnings,
        num_bad_lines=report.num_bad_lines,
        counts=report.counts,
        roles=report.roles,
        is_complete=report.is_complete,
        num_left_out=report.num_left_out,
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
