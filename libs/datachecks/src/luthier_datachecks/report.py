"""All findings of a file in one object of bounded size."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from luthier_datachecks.checker import check_lines
from luthier_datachecks.codes import Severity
from luthier_datachecks.findings import Finding, Limits, Row

MAX_FINDINGS = 1_000
_MAX_ROLE_SHAPES = 4_096


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is. `findings` holds the first errors, and the first warnings where errors leave room.

    The counts hold what is left out too; of one line at most `Limits.max_findings_per_line` are ever counted.
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
    def num_left_out(self) -> int:
        """Errors and warnings that `findings` does not hold."""
        return self.num_errors + self.num_warnings - len(self.findings)

    @property
    def is_complete(self) -> bool:
        """Whether `findings` holds every finding."""
        return self.num_left_out == 0


class ReportBuilder:
    """Collects rows and findings one by one, for a caller that also does something else with the rows."""

    def __init__(self, max_findings: int = MAX_FINDINGS) -> None:
        self._max_findings = max_findings
        # Apart, so that no number of warnings hides an error.
        self._kept: dict[Severity, list[Finding]] = {"error": [], "warning": []}
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
        kept = self._kept[finding.severity]
        if len(kept) < self._max_findings:
            kept.append(finding)

    def build(self) -> Report:
        """The report of everything so far."""
        self._fold_shapes()
        errors, warnings = self._kept["error"], self._kept["warning"]
        shown = errors + warnings[: self._max_findings - len(errors)]
        return Report(
            num_lines=self._last_line,
            num_examples=self._num_examples,
            num_errors=self._severities["error"],
            num_warnings=self._severities["warning"],
            num_bad_lines=self._num_bad_lines,
            counts=dict(sorted(self._counts.items())),
            roles=dict(sorted(self._roles.items())),
            findings=sorted(shown, key=_place),
        )

    def _fold_shapes(self) -> None:
        for shape, num_rows in self._shapes.items():
            for role in shape:
                self._roles[role] += num_rows
        self._shapes.clear()


def _place(finding: Finding) -> tuple[bool, int]:
    """What is said of the file as a whole comes last."""
    return finding.line is None, finding.line or 0


def check_file(chunks: Iterable[bytes], limits: Limits | None = None) -> Report:
    """The report of a chat training file, read once from beginning to end."""
    builder = ReportBuilder()
    for found in check_lines(chunks, limits):
        builder.add(found)
    return builder.build()
