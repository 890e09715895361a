"""Graders as clients send them: what is understood, and how what is wrong is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier_graders import InvalidGraderError, MultiGrader, ScoreModelGrader, read_grader

EXACT = {"type": "string_check", "name": "e", "input": "{{sample.output_text}}", "reference": "x", "operation": "eq"}
ALIKE = {
    "type": "text_similarity",
    "name": "s",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_l",
}
PYTHON = {
    "type": "python",
    "name": "p",
    "source": "def grade(sample, item):\n    return 1.0\n",
    "image_tag": "2025-05-08",
}
SCORE = {
    "type": "score_model",
    "name": "m",
    "model": "gpt-4o",
    "input": [
        {"role": "system", "content": "Judge."},
        {
            "role": "user",
            "type": "message",
            "content": [
                {"type": "input_text", "text": "{{item.q}}"},
                {"type": "output_text", "text": "{{sample.output_text}}"},
                {"type": "input_image", "image_url": "{{item.image}}", "detail": "low"},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                "plain",
            ],
        },
        {"role": "user", "content": {"type": "input_text", "text": "one part"}},
    ],
    "range": [0, 10],
    "sampling_params": {
        "max_completions_tokens": 10,
        "temperature": 0,
        "top_p": 1,
        "seed": 1,
        "reasoning_effort": "low",
    },
}
LABEL = {
    "type": "label_model",
    "name": "l",
    "model": "gpt-4o",
    "input": [{"role": "user", "content": "{{item.q}}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
MULTI = {"type": "multi", "name": "all", "graders": {"a": EXACT, "b": ALIKE}, "calculate_output": "0.5 * a + 0.5 * b"}


@pytest.mark.parametrize("grader", [EXACT, ALIKE, PYTHON, SCORE, LABEL, MULTI], ids=lambda g: g["type"])
def test_what_is_read_says_the_same(grader: dict[str, Any]) -> None:
    assert read_grader(grader).model_dump(mode="json", exclude_none=True) == grader


def test_a_multi_holds_any_type_but_multi() -> None:
    graders = {"a": EXACT, "b": ALIKE, "c": PYTHON, "d": SCORE, "e": LABEL}
    read = read_grader({**MULTI, "graders": graders, "calculate_output": "a+b+c+d+e"})
    assert isinstance(read, MultiGrader)
    assert list(read.graders) == list(graders)


def test_graders_in_a_list_or_alone_are_kept_by_name() -> None:
    listed = read_grader({**MULTI, "graders": [EXACT, ALIKE], "calculate_output": "e + s"})
    alone = read_grader({**MULTI, "graders": EXACT, "calculate_output": "e"})
    assert isinstance(listed, MultiGrader)
    assert isinstance(alone, MultiGrader)
    assert (list(listed.graders), list(alone.graders)) == (["e", "s"], ["e"])


def test_a_grader_may_itself_be_called_type() -> None:
    assert read_grader({**MULTI, "graders": {"type": EXACT}, "calculate_output": "type"})


def test_null_is_left_out() -> None:
    read = read_grader({**SCORE, "range": None, "sampling_params": {"seed": None}})
    assert isinstance(read, ScoreModelGrader)
    assert read.range is None


def without(grader: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in grader.items() if key != name}


def in_multi(**changes: Any) -> dict[str, Any]:
    return {**MULTI, "graders": {"a": {**EXACT, **changes}, "b": ALIKE}}


def saying(content: Any) -> dict[str, Any]:
    return {**LABEL, "input": [{"role": "user", "content": "x"}, {"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("grader", "param", "kind", "says"),
    [
        ([], "grader", "invalid", "must be an object"),
        ({}, "grader.type", "missing", "is missing"),
        ({"type": "regex"}, "grader.type", "invalid", "must be one of string_check, text_similarity, python"),
        ({"type": 3}, "grader.type", "invalid", "must be one of"),
        (without(EXACT, "operation"), "grader.operation", "missing", "is missing"),
        ({**EXACT, "operation": "neq"}, "grader.operation", "invalid", "must be 'eq', 'ne', 'like' or 'ilike'"),
        ({**EXACT, "name": ""}, "grader.name", "invalid", "at least 1 characters"),
        ({**EXACT, "input": None}, "grader.input", "invalid", "must be a string"),
        ({**EXACT, "weight": 1}, "grader.weight", "unknown", "is not known"),
        ({**EXACT, "input": "{{item}}"}, "grader.input", "invalid", "no path like item.name"),
        ({**EXACT, "input": "{{ item.x | upper }}"}, "grader.input", "invalid", "no path"),
        ({**EXACT, "input": "{{env.HOME}}"}, "grader.input", "invalid", "no path"),
        ({**EXACT, "reference": "a {{item.x"}, "grader.reference", "invalid", "has {{ without }}"),
        ({**EXACT, "reference": "{{sample.text}}"}, "grader.reference", "invalid", "a sample has output_text"),
        ({**EXACT, "reference": "{{item.x}}" * 300}, "grader.reference", "invalid", "more than 256 places"),
        ({**EXACT, "reference": "x" * 70_000}, "grader.reference", "invalid", "at most 65536 characters"),
        ({**ALIKE, "evaluation_metric": "rouge_6"}, "grader.evaluation_metric", "invalid", "must be 'cosine'"),
        ({**PYTHON, "source": "print(1)"}, "grader.source", "invalid", "must define a function grade"),
        ({**PYTHON, "source": PYTHON["source"] + "#" * 256_000}, "grader.source", "invalid", "smaller than 256000"),
        ({**SCORE, "range": [1, 0]}, "grader.range", "invalid", "the smaller one first"),
        ({**SCORE, "range": [1]}, "grader.range", "invalid", "at least 2 items"),
        ({**SCORE, "range": [0, float("nan")]}, "grader.range.1", "invalid", "must be a number"),
        ({**SCORE, "input": []}, "grader.input", "invalid", "at least 1 items"),
        ({**SCORE, "input": [{"role": "tool", "content": "x"}]}, "grader.input.0.role", "invalid", "must be 'user'"),
        ({**SCORE, "sampling_params": {"top_p": 2}}, "grader.sampling_params.top_p", "invalid", "at most 1"),
        ({**SCORE, "sampling_params": {"seed": 1.5}}, "grader.sampling_params.seed", "invalid", "whole number"),
        (
            {**SCORE, "sampling_params": {"max_completion_tokens": 2}},
            "grader.sampling_params.max_completion_tokens",
            "unknown",
            "is not known",
        ),
        (saying(7), "grader.input.1.content", "invalid", "must be a text, a part"),
        (saying([{"type": "video"}]), "grader.input.1.content", "invalid", "must be a text, a part"),
        (saying([{"type": "input_text"}]), "grader.input.1.content", "invalid", "must be a text, a part"),
        (saying(["{{item}}"]), "grader.input.1.content", "invalid", "no path"),
        ({**LABEL, "input": [{"role": "user"}]}, "grader.input.0.content", "missing", "is missing"),
        ({**LABEL, "labels": ["a", "a"]}, "grader.labels", "invalid", "each label once"),
        ({**LABEL, "passing_labels": ["fine"]}, "grader.passing_labels", "invalid", "must be some of the labels"),
        (in_multi(operation="neq"), "grader.graders.a.operation", "invalid", "must be 'eq'"),
        (in_multi(type="multi"), "grader.graders.a.type", "invalid", "cannot be multi inside a multi"),
        (in_multi(type="none"), "grader.graders.a.type", "invalid", "must be one of"),
        ({**MULTI, "graders": {"a": 1}}, "grader.graders.a", "invalid", "must be an object"),
        ({**MULTI, "graders": {"a": {}}}, "grader.graders.a.type", "missing", "is missing"),
        ({**MULTI, "graders": {"a": saying(7)}}, "grader.graders.a.input.1.content", "invalid", "must be a text"),
        ({**MULTI, "graders": {}}, "grader.graders", "invalid", "must hold 1 to 32 graders"),
        ({**MULTI, "graders": "a"}, "grader.graders", "invalid", "must be an object"),
        ({**MULTI, "graders": [EXACT, EXACT]}, "grader.graders", "invalid", "different names"),
        ({**MULTI, "graders": [{"type": "python"}]}, "grader.graders", "invalid", "item 0 has none"),
        ({**MULTI, "graders": {"my-name": EXACT}}, "grader.graders", "invalid", "'my-name' is none"),
        ({**MULTI, "graders": {"max": EXACT}}, "grader.graders", "invalid", "'max' is none"),
        ({**MULTI, "calculate_output": "a + z"}, "grader.calculate_output", "invalid", "uses z, which is neither"),
        ({**MULTI, "calculate_output": "a +"}, "grader.calculate_output", "invalid", "ends where"),
        (without(MULTI, "calculate_output"), "grader.calculate_output", "missing", "is missing"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(grader: Any, param: str, kind: str, says: str) -> None:
    with pytest.raises(InvalidGraderError) as caught:
        read_grader(grader)
    assert (caught.value.param, caught.value.kind) == (param, kind)
    assert says in caught.value.message


def test_the_path_begins_where_the_caller_says() -> None:
    with pytest.raises(InvalidGraderError) as caught:
        read_grader({}, "method.reinforcement.grader")
    assert caught.value.param == "method.reinforcement.grader.type"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([EXACT, ALIKE, PYTHON, SCORE, LABEL, MULTI]), st.data())
def test_any_json_is_a_grader_or_an_invalid_one(grader: dict[str, Any], data: st.DataObject) -> None:
    changed = {**grader, data.draw(st.sampled_from(sorted(grader))): data.draw(_JSON)}
    try:
        read_grader(changed)
    except InvalidGraderError as error:
        named = (error.param.split(".")[0], bool(error.message))
    else:
        return
    assert named == ("grader", True)
