"""All findings of a file in one object of bounded size."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from luthier_datachecks.checker import check_lines
from luthier_datachecks.findings import Finding, Limits, Row

MAX_FINDINGS = 1_000
_MAX_ROLE_SHAPES = 4_096


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is. `findings` holds the first ones only; the counts are exact.

    `num_lines` is the last line that held anything; `num_examples` counts the rows that can be trained on and
    `roles` their messages.
    """

    num_lines: int
    num_examples: int
    num_errors: int
    num_warnings: int
    num_bad_lines: int
    counts: dict[str, int]
    roles: dict[str, int]
    findings: list[Finding]

    @property
    def is_valid(self) -> bool:
        """Whether a job may train on the file."""
        return self.num_errors == 0

    @property
    def is_complete(self) -> bool:
        """Whether `findings` holds every finding."""
        return len(self.findings) == self.num_errors + self.num_warnings


class ReportBuilder:
    """Collects rows and findings one by one, for a caller that also does something else with the rows."""

    def __init__(self, max_findings: int = MAX_FINDINGS) -> None:
        self._max_findings = max_findings
        self._findings: list[Finding] = []
        self._counts: Counter[str] = Counter()
        self._severities: Counter[str] = Counter()
        self._shapes: dict[tuple[str, ...], int] = {}
        self._roles: Counter[str] = Counter()
        self._num_examples = self._num_bad_lines = self._last_line = self._last_bad_line = 0

    def add(self, found: Finding | Row) -> None:
        """Take one thing that `check_lines` yielded."""
        if isinstance(found, Row):
            self._num_examples += 1
            self._last_line = found.line
            # Most rows share a few sequences of roles: counting those is cheaper than counting roles.
            self._shapes[found.roles] = self._shapes.get(found.roles, 0) + 1
            if len(self._shapes) > _MAX_ROLE_SHAPES:
                self._fold_shapes()
            return
        self.add_finding(found)

    def add_finding(self, finding: Finding) -> None:
        """Take a finding, also one that was made elsewhere (by a check that needs a tokenizer, say)."""
        self._counts[finding.code] += 1
        self._severities[finding.severity] += 1
        if finding.line is not None:
            self._last_line = max(self._last_line, finding.line)
            if finding.severity == "error" and finding.line != self._last_bad_line:
                self._num_bad_lines += 1
                self._last_bad_line = finding.line
        if len(self._findings) < self._max_findings:
            self._findings.append(finding)

    def build(self) -> Report:
        """The report of everything so far."""
        self._fold_shapes()
        return Report(
            num_lines=self._last_line,
            num_examples=self._num_examples,
            num_errors=self._severities["error"],
            num_warnings=self._severities["warning"],
            num_bad_lines=self._num_bad_lines,
            counts=dict(sorted(self._counts.items())),
            roles=dict(sorted(self._roles.items())),
            findings=list(self._findings),
        )

    def _fold_shapes(self) -> None:
        for shape, num_rows in self._shapes.items():
            for role in shape:
                self._roles[role] += num_rows
        self._shapes.clear()


def check_file(chunks: Iterable[bytes], limits: Limits | None = None) -> Report:
    """The report of a chat training file, read once from beginning to end."""
    builder = ReportBuilder()
    for found in check_lines(chunks, limits):
        builder.add(found)
    return builder.build()
