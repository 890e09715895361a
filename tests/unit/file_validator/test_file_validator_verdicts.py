"""What is stated about files and jobs."""

from typing import Any

from luthier_common.contract.events import Problem
from luthier_common.contract.spec import Hyperparameters, JobSpec
from luthier_datachecks import Finding
from luthier_file_validator.checks import CheckReport
from luthier_file_validator.verdicts import (
    Crash,
    crash_problem,
    crash_report,
    file_problem,
    file_verdict,
    readiness,
    row_problem,
)


def found(code: str, line: int | None, severity: Any = "error", message: str = "It is wrong.") -> Finding:
    return Finding(line=line, byte_offset=0, path="", code=code, severity=severity, message=message)


def a_report(*findings: Finding) -> CheckReport:
    errors = [finding for finding in findings if finding.severity == "error"]
    return CheckReport(num_errors=len(errors), num_bad_lines=len({f.line for f in errors}), findings=list(findings))


def test_the_first_error_speaks_for_the_file_and_says_how_many_there_are() -> None:
    problem = file_problem(a_report(found("blank_line", 1, "warning"), found("invalid_json", 3), found("data_type", 9)))
    assert problem is not None
    assert (problem.code, problem.line, problem.owner) == ("invalid_json", 3, "user")
    assert problem.message == "2 lines cannot be trained on; line 3: It is wrong."


def test_warnings_alone_are_no_problem() -> None:
    verdict = file_verdict(a_report(found("blank_line", 1, "warning")), "key", "0" * 64)
    assert verdict.valid
    assert verdict.problem is None


def test_too_few_examples_are_told_in_the_words_that_clients_know() -> None:
    said = "Training file has 7 example(s), but must have at least 10 examples"
    problem = row_problem(a_report(found("invalid_n_examples", None, message=said)), "training")
    assert problem is not None
    assert (problem.code, problem.message, problem.param) == ("invalid_n_examples", said, "training_file")


def test_refused_rows_are_named() -> None:
    problem = row_problem(a_report(*[found("row_too_long", line) for line in range(5, 17)]), "validation")
    assert problem is not None
    assert (problem.code, problem.param, problem.line) == ("row_too_long", "validation_file", 5)
    assert "(lines 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 2 more)" in problem.message


def test_every_other_refusal_of_the_text_library_is_the_templates() -> None:
    problem = row_problem(a_report(found("unknown_role", 2)), "training")
    assert problem is not None
    assert problem.code == "template_refused"


def test_an_error_that_is_not_listed_is_an_error_all_the_same() -> None:
    report = CheckReport(num_errors=1, num_warnings=1, num_left_out=1, findings=[found("blank_line", 1, "warning")])
    for problem in (file_problem(report), row_problem(report, "training")):
        assert problem is not None
        assert problem.code == "invalid_file"


def test_a_check_that_was_ended_by_its_limits_is_a_verdict() -> None:
    problem = crash_problem(Crash.LIMITS)
    verdict = file_verdict(crash_report(problem), "key", "0" * 64, problem)
    assert not verdict.valid
    assert verdict.num_findings == 1
    assert verdict.problem is not None
    assert verdict.problem.code == "check_limits_exceeded"


def test_a_job_waits_for_verdicts_and_ends_with_the_first_bad_one() -> None:
    bad = {"phase": "rejected", "verdict": {"problem": Problem(code="invalid_json", message="m", line=3).model_dump()}}
    good, new, gone = {"phase": "processed"}, {"phase": "uploaded"}, {"phase": "deleted"}
    assert readiness({"training": good, "validation": new}) is False
    assert readiness({"training": good, "validation": good}) is True
    problem = readiness({"training": new, "validation": bad})
    assert isinstance(problem, Problem)
    assert (problem.code, problem.line, problem.param) == ("invalid_json", 3, "validation_file")
    for file in (gone, None):
        missing = readiness({"training": file})
        assert isinstance(missing, Problem)
        assert (missing.code, missing.param) == ("file_missing", "training_file")


def test_rows_may_be_as_long_as_the_job_says_and_the_base_can_see() -> None:
    def a_spec(context_length: int | None) -> JobSpec:
        asked = Hyperparameters(context_length=context_length)
        return JobSpec(model="m", training_file="f", seed=1, hyperparameters=asked)

    assert a_spec(None).hyperparameters.longest_row(2048) == 2048
    assert a_spec(None).hyperparameters.longest_row(131_072) == 8192
    assert a_spec(512).hyperparameters.longest_row(2048) == 512
    assert a_spec(4096).hyperparameters.longest_row(2048) == 2048
