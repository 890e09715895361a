"""From reports and documents to what is stated about files and jobs. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from luthier_common.contract.events import FileValidated, Problem
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.spec import JobSpec
from luthier_datachecks import Finding
from luthier_file_validator.checks import CheckReport

Role = Literal["training", "validation"]
ROLES: tuple[Role, ...] = ("training", "validation")
FileDoc = Mapping[str, Any]
FINE_TUNE = "fine-tune"
"""The length of rows when the job names none; the scheduler resolves the run by the same rule (contract.spec)."""
NAMED_LINES = 10
_OWN_CODES = frozenset(FailureReason) | {"invalid_n_examples"}


class Crash(StrEnum):
    """A check that gave no report."""

    LIMITS = "check_limits_exceeded"
    BAD_BUNDLE = "base_missing"
    INTERNAL = "internal_error"


_CRASHES = {
    Crash.LIMITS: ("The check needed more memory or time than it may have.", "user"),
    Crash.BAD_BUNDLE: (FailureReason.BASE_MISSING.sentence, "operator"),
    Crash.INTERNAL: (FailureReason.INTERNAL.sentence, "operator"),
}
_UNLISTED = Finding(
    line=None,
    byte_offset=None,
    path="",
    code=FailureReason.INVALID_FILE,
    severity="error",
    message=FailureReason.INVALID_FILE.sentence,
)


def crash_problem(crash: Crash, param: str | None = None) -> Problem:
    message, owner = _CRASHES[crash]
    return Problem(code=crash, message=message, param=param, owner="user" if owner == "user" else "operator")


def storage_problem(param: str | None = None) -> Problem:
    """The object store does not hold the bytes that were uploaded."""
    return Problem(code=FailureReason.STORAGE, message="The file's stored bytes are missing or damaged.", param=param)


def crash_report(problem: Problem) -> CheckReport:
    """The report of a file that could not be read to its end."""
    finding = Finding(
        line=None, byte_offset=None, path="", code=problem.code, severity="error", message=problem.message
    )
    return CheckReport(num_errors=1, counts={problem.code: 1}, findings=[finding])


def file_verdict(
    report: CheckReport, report_key: str, report_sha256: str, problem: Problem | None = None
) -> FileValidated:
    """What is stated about a file. `problem` is what kept the check from ending, if anything did."""
    problem = problem or file_problem(report)
    return FileValidated(
        valid=problem is None,
        num_examples=report.num_examples,
        num_tokens=report.num_tokens,
        num_findings=report.num_errors + report.num_warnings,
        report_key=report_key,
        report_sha256=report_sha256,
        problem=problem,
    )


def file_problem(report: CheckReport) -> Problem | None:
    """The first error, with how many there are; None when the file can be trained on."""
    if not report.num_errors:
        return None
    first = _errors_of(report)[0]
    message = first.message
    if first.line is not None:
        lines = "1 line" if report.num_bad_lines == 1 else f"{report.num_bad_lines} lines"
        message = f"{lines} cannot be trained on; line {first.line}: {first.message}"
    return Problem(code=first.code, message=message, line=first.line, owner="user")


def row_problem(report: CheckReport, role: Role) -> Problem | None:
    """Why a job cannot use a file with its base, naming the lines; None when it can."""
    if not report.num_errors:
        return None
    errors = _errors_of(report)
    first, param = errors[0], f"{role}_file"
    if first.line is None:
        return Problem(code=first.code, message=first.message, param=param, owner="user")
    lines = list(dict.fromkeys(finding.line for finding in errors))
    named = ", ".join(str(line) for line in lines[:NAMED_LINES] if line is not None)
    more = report.num_bad_lines - NAMED_LINES
    said = (
        f"line {named}" if report.num_bad_lines == 1 else f"lines {named}" + (f" and {more} more" if more > 0 else "")
    )
    code = first.code if first.code in _OWN_CODES else FailureReason.TEMPLATE_REFUSED
    message = f"The {role} file cannot be used with this base ({said}). {first.message}"
    return Problem(code=code, message=message, param=param, line=first.line, owner="user")


def _errors_of(report: CheckReport) -> list[Finding]:
    """The listed errors of a report that counts some, at least one: what is not listed is an error all the same."""
    return [finding for finding in report.findings if finding.severity == "error"] or [_UNLISTED]


def readiness(files: Mapping[Role, FileDoc | None]) -> Problem | bool:
    """Whether every file of a job can be read now; a problem when one never will be."""
    for role, file in files.items():
        if (problem := _unusable(role, file)) is not None:
            return problem
    return all(file is not None and file["phase"] == "processed" for file in files.values())


def _unusable(role: Role, file: FileDoc | None) -> Problem | None:
    param = f"{role}_file"
    if file is None or file["phase"] == "deleted":
        return Problem(
            code=FailureReason.FILE_MISSING, message=FailureReason.FILE_MISSING.sentence, param=param, owner="user"
        )
    if file["phase"] != "rejected":
        return None
    found = (file.get("verdict") or {}).get("problem")
    if found is None:
        return Problem(
            code=FailureReason.INVALID_FILE, message=FailureReason.INVALID_FILE.sentence, param=param, owner="user"
        )
    return Problem.model_validate(found).model_copy(update={"param": param})


def files_of(spec: JobSpec) -> dict[Role, str]:
    """The job's files by their role, in the order in which they are read."""
    files: dict[Role, str] = {"training": spec.training_file}
    return files | ({"validation": spec.validation_file} if spec.validation_file else {})


def same_bytes_warning() -> Finding:
    return Finding(
        line=None,
        byte_offset=None,
        path="",
        code="same_as_training_file",
        severity="warning",
        message="The validation file has the same bytes as the training file, so its loss says little.",
    )
