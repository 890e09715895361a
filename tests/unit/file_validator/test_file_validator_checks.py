"""Lines to a report, with tokens and without."""

import json
from typing import Any

import pytest

from builders.bases import chat_row, make_tiny_base
from luthier_datachecks import Limits
from luthier_file_validator.checks import RowRule, examine
from luthier_file_validator.verdicts import file_problem, row_problem
from luthier_text import TextBundle, TrainRow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    return TextBundle.load(make_tiny_base(tmp_path_factory.mktemp("base")))


def lines(*rows: Any) -> list[bytes]:
    return [(row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows]


def test_every_bad_line_is_in_the_report_and_no_content_is() -> None:
    report = examine(lines(chat_row("a", "b"), "{secret", chat_row("c", "d"), {"messages": []}), Limits(min_examples=1))
    assert [(found.line, found.code) for found in report.findings] == [(2, "invalid_json"), (4, "empty_messages_list")]
    assert (report.num_examples, report.num_errors, report.num_bad_lines) == (2, 2, 2)
    assert "secret" not in str(report)
    assert report.num_tokens is None


def test_tokens_are_those_that_are_trained(bundle: TextBundle) -> None:
    rows = [chat_row("Where is parcel 1?", "On its way."), chat_row("Hello", "Thank you")]
    report = examine(lines(*rows), Limits(min_examples=1), bundle=bundle, rule=RowRule(256))
    made = [bundle.train_row(row) for row in rows]
    assert all(isinstance(row, TrainRow) for row in made)
    assert report.num_tokens == sum(len(row.input_ids) for row in made if isinstance(row, TrainRow))
    assert report.num_trained_tokens == sum(row.num_trained for row in made if isinstance(row, TrainRow))
    counted = examine(lines(*rows), Limits(min_examples=1), bundle=bundle)
    assert counted.num_tokens == report.num_tokens
    assert counted.num_trained_tokens is None


def test_a_row_too_long_for_the_job_is_named(bundle: TextBundle) -> None:
    rows = [chat_row("a", "b"), chat_row("a", "long " * 200)]
    report = examine(lines(*rows), Limits(min_examples=1), bundle=bundle, rule=RowRule(64))
    assert [(found.line, found.code, found.severity) for found in report.findings] == [(2, "row_too_long", "error")]
    assert examine(lines(*rows), Limits(min_examples=1), bundle=bundle).num_errors == 0


def test_long_rows_are_cut_or_left_out_where_the_job_says_so(bundle: TextBundle) -> None:
    rows = [chat_row("a", "b"), chat_row("a", "long " * 200)]
    cut = examine(lines(*rows), Limits(min_examples=1), bundle=bundle, rule=RowRule(64, "truncate"))
    assert [(found.line, found.code, found.severity) for found in cut.findings] == [(2, "truncated", "warning")]
    assert (cut.num_errors, cut.num_examples) == (0, 2)
    left = examine(lines(*rows), Limits(min_examples=1), bundle=bundle, rule=RowRule(64, "drop"))
    assert [(found.line, found.code, found.severity) for found in left.findings] == [(2, "row_dropped", "warning")]
    assert (left.num_errors, left.num_examples) == (0, 1)
    assert left.num_tokens is not None
    assert cut.num_tokens == left.num_tokens + 64


def test_too_few_rows_left_is_an_error(bundle: TextBundle) -> None:
    rows = [chat_row("a", "b"), chat_row("a", "long " * 200)]
    limits = Limits(min_examples=2, file_role="Training")
    report = examine(lines(*rows), limits, bundle=bundle, rule=RowRule(64, "drop"))
    assert [(found.code, found.severity) for found in report.findings] == [
        ("row_dropped", "warning"),
        ("invalid_n_examples", "error"),
    ]
    asks_for_more = examine(lines(chat_row("a", "long " * 200)), limits, bundle=bundle, rule=RowRule(64, "truncate"))
    assert asks_for_more.num_errors == 1


def test_a_bad_line_behind_more_warnings_than_a_report_lists_makes_the_file_bad() -> None:
    rows = [chat_row("a", "b") | {"id": number} for number in range(50)]
    report = examine(lines(*rows, "{"), Limits(min_examples=1), max_findings=10)
    problem = file_problem(report)
    assert problem is not None
    assert (problem.code, problem.line) == ("invalid_json", 51)
    assert (len(report.findings), report.num_left_out, report.is_complete) == (10, 41, False)


def test_a_job_whose_rows_are_all_left_out_is_rejected_however_many_there_are(bundle: TextBundle) -> None:
    rows = [chat_row("a", "long " * 200)] * 30
    limits = Limits(min_examples=10, file_role="Training")
    report = examine(lines(*rows), limits, bundle=bundle, rule=RowRule(64, "drop"), max_findings=10)
    problem = row_problem(report, "training")
    assert problem is not None
    assert problem.code == "invalid_n_examples"
