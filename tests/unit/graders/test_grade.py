"""What samples score."""

import json
from typing import Any

import pytest

from luthier_graders import CannotGradeError, Problem, Result, Sample, grade, read_grader


def check(operation: str, given: str = "{{sample.output_text}}", reference: str = "{{item.answer}}") -> dict[str, Any]:
    return {"type": "string_check", "name": "c", "input": given, "reference": reference, "operation": operation}


def alike(metric: str, reference: str = "{{item.answer}}") -> dict[str, Any]:
    given = "{{sample.output_text}}"
    named = {"type": "text_similarity", "name": "s", "input": given, "reference": reference}
    return {**named, "evaluation_metric": metric}


def multi(formula: str, **graders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}


def run(grader: dict[str, Any], sample: str, /, **item: Any) -> Result:
    return grade(read_grader(grader), Sample(sample), item)


@pytest.mark.parametrize(
    ("operation", "answer", "reference", "expected"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "paris", "Paris", 0),
        ("ne", "paris", "Paris", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("like", "Paris", "It is Paris.", 0),
        ("ilike", "It is PARIS.", "paris", 1),
        ("ilike", "STRASSE", "straße", 1),
    ],
)
def test_string_check(operation: str, answer: str, reference: str, expected: float) -> None:
    assert run(check(operation), answer, answer=reference) == Result(expected)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{item.a}}", "text"),
        ("<{{ item.a }}|{{item.a}}>", "<text|text>"),
        ("{{item.list[1].x}}", "1"),
        ("{{item.list.1.x}}", "1"),
        ('{{item["a key"]}}', "true"),
        ("{{item['a key']}}", "true"),
        ("{{item.none}}", "null"),
        ("{{item.list}}", '[0, {"x": 1}]'),
        ("{{item.items}}", "not a method"),
        ("{{item.ключ}}", "ж"),
        ("{{sample.output_text}}", '{"v": {"w": [1.5]}}'),
        ("{{sample.output_json.v.w[0]}}", "1.5"),
        ("{{sample.output_json}}", '{"v": {"w": [1.5]}}'),
        ("no place }} here", "no place }} here"),
    ],
)
def test_templates(template: str, expected: str) -> None:
    item = {"a": "text", "list": [0, {"x": 1}], "a key": True, "none": None, "items": "not a method", "ключ": "ж"}
    grader = check("eq", given=template, reference="{{item.expected}}")
    assert run(grader, '{"v": {"w": [1.5]}}', **item, expected=expected).reward == 1


@pytest.mark.parametrize(
    ("template", "answer", "kind", "message"),
    [
        ("{{item.x}}", "", "invalid_variable", "item.x is not there"),
        ("{{item.list[2]}}", "", "invalid_variable", "item.list[2] is not there"),
        ("{{item.list.-1}}", "", "invalid_variable", "item.list.-1 is not there"),
        ("{{item.a.b}}", "", "invalid_variable", "item.a.b is not there"),
        ("{{item.a.__class__}}", "", "invalid_variable", "item.a.__class__ is not there"),
        ("{{sample.output_tools}}", "", "invalid_variable", "sample.output_tools is not there"),
        ("{{sample.output_json.v}}", '{"w": 1}', "invalid_variable", "sample.output_json.v is not there"),
        ("{{sample.output_json}}", "no", "sample_parse", "sample.output_json is not there: the answer is not JSON"),
        ("{{sample.output_json}}", "NaN", "sample_parse", "sample.output_json is not there: the answer is not JSON"),
        (
            "{{sample.output_json}}",
            "[" * 60_000,
            "sample_parse",
            "sample.output_json is not there: the answer is not JSON",
        ),
        (
            "{{sample.output_json}}",
            "9" * 5000,
            "sample_parse",
            "sample.output_json is not there: the answer is not JSON",
        ),
    ],
)
def test_what_is_not_there_is_a_problem_and_no_reward(template: str, answer: str, kind: Any, message: str) -> None:
    result = run(check("eq", given=template, reference=""), answer, a="text", list=[1, 2])
    assert result == Result(None, problems=(Problem(kind, "grader.input", message),))


def test_a_multi_combines_by_its_formula() -> None:
    grader = multi("0.25 * exact + 0.75 * words", exact=check("eq"), words=alike("rouge_1"))
    assert run(grader, "a b", answer="a c") == Result(0.375, {"exact": 0, "words": 0.5})


def test_a_multi_with_a_missing_score_has_no_reward() -> None:
    grader = multi("a + b", a=check("eq"), b=check("eq", reference="{{item.other}}"))
    result = run(grader, "x", answer="x")
    problem = Problem("invalid_variable", "grader.graders.b.reference", "item.other is not there")
    assert result == Result(None, {"a": 1, "b": None}, (problem,))


def test_a_score_that_the_formula_does_not_use_may_be_missing() -> None:
    result = run(multi("a", a=check("eq"), b=check("eq", reference="{{item.other}}")), "x", answer="x")
    assert (result.reward, result.scores, len(result.problems)) == (1, {"a": 1, "b": None}, 1)


def test_a_formula_without_a_value_is_a_problem() -> None:
    result = run(multi("1 / a", a=check("eq")), "x", answer="y")
    assert result == Result(None, {"a": 0}, (Problem("formula", "grader.calculate_output", "divides by zero"),))


PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
SCORE = {"type": "score_model", "name": "j", "model": "m", "input": [{"role": "user", "content": "x"}]}
LABEL = {**SCORE, "type": "label_model", "labels": ["a"], "passing_labels": ["a"]}


@pytest.mark.parametrize(
    ("grader", "param", "needs"),
    [
        (PYTHON, "grader.type", "sandbox"),
        (SCORE, "grader.type", "model that grades"),
        (LABEL, "grader.type", "model that grades"),
        (alike("cosine"), "grader.evaluation_metric", "embedding model"),
        (multi("a", a=check("eq"), b=PYTHON), "grader.graders.b.type", "sandbox"),
        (multi("a", a=alike("cosine")), "grader.graders.a.evaluation_metric", "embedding model"),
    ],
)
def test_what_cannot_be_run_says_what_is_missing(grader: dict[str, Any], param: str, needs: str) -> None:
    with pytest.raises(CannotGradeError) as caught:
        run(grader, "x", answer="x")
    assert (caught.value.param, caught.value.kind) == (param, "unsupported")
    assert needs in caught.value.message


@pytest.mark.parametrize("text", ["x" * 65_537, "é" * 33_000, ["x" * 70_000]])
def test_texts_that_are_too_long_are_refused(text: Any) -> None:
    with pytest.raises(CannotGradeError) as caught:
        run(check("eq"), "x", answer=text)
    assert (caught.value.param, caught.value.kind) == ("grader.reference", "too_long")


def test_a_template_cannot_multiply_a_text_beyond_the_limit() -> None:
    with pytest.raises(CannotGradeError):
        run(check("eq", reference="{{item.answer}}" * 256), "x", answer="x" * 60_000)


def test_all_graders_of_a_multi_share_one_limit() -> None:
    graders = {f"g{number}": check("eq") for number in range(5)}
    with pytest.raises(CannotGradeError) as caught:
        run(multi("g0", **graders), "x" * 60_000, answer="y" * 60_000)
    assert caught.value.param == "grader.graders.g2.input"


def test_halves_of_characters_in_an_answer_do_no_harm() -> None:
    answer = json.dumps({"v": "\ud800"})
    assert run(check("eq", given="{{sample.output_json.v}}", reference="x"), answer).reward == 0
