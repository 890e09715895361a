"""Random rows: right ones pass, spoilt ones fail on their own line, and both ways of reading agree."""

import json
import re
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from luthier_datachecks import Finding, Limits, Row, check_file, check_lines
from luthier_datachecks.chat import check_example
from luthier_datachecks.fast import accept
from luthier_datachecks.parse import parse_line

LIMITS = Limits(min_examples=0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
TRICKY = st.sampled_from(["role", '"role":', ':"content"', "\\u0000", "\\", "a: b", "messages", "\u2028", "\U0001f3bb"])
CONTENT = TEXTS | TRICKY
PROMPTS = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user"]), "content": CONTENT}, optional={"name": CONTENT}
)
REPLIES = st.fixed_dictionaries({"role": st.just("assistant"), "content": CONTENT}, optional={"name": CONTENT})
EXAMPLES = st.builds(
    lambda messages, reply: {"messages": [*messages, reply]},
    st.lists(PROMPTS | REPLIES, max_size=5),
    REPLIES | REPLIES.map(lambda reply: {**reply, "weight": 1}),
)
SPOILERS: list[Any] = [
    lambda text: text[:-1],
    lambda text: text + "]",
    lambda text: re.sub('"role"( ?:)', r'"rôle"\1', text, count=1),
    lambda text: text.replace('"assistant"', '"helper"'),
    lambda text: text.replace('"messages"', '"messages":[{"role":"assistant","content":"x"}],"messages"', 1),
    lambda text: text.replace('"role"', '"role":"user","role"', 1),
    lambda text: text.replace('"role"', '"role":"user","\\u0072ole"', 1),
    lambda text: text.replace('"content"', '"content":"a\\u003ab\\u0022","content"', 1),
    lambda text: text.replace('"content": "', '"content": "\\u0000', 1).replace('"content":"', '"content":"\\u0000', 1),
    lambda text: text.replace('"content": "', '"content": "\\udc00', 1).replace('"content":"', '"content":"\\udc00', 1),
    lambda text: text.replace('"content"', '"content":NaN,"weight"', 1),
]
LAYOUTS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])


def spelled(example: dict[str, Any], layout: tuple[str, str], ascii_only: bool) -> str:
    return json.dumps(example, separators=layout, ensure_ascii=ascii_only)


@settings(deadline=None)
@given(st.lists(EXAMPLES, max_size=6), LAYOUTS, st.booleans(), st.integers(1, 200))
def test_random_good_rows_pass(examples: list[Any], layout: tuple[str, str], ascii_only: bool, size: int) -> None:
    data = "\n".join(spelled(example, layout, ascii_only) for example in examples).encode()
    found = list(check_lines([data[start : start + size] for start in range(0, len(data), size)], LIMITS))
    assert [type(item) for item in found] == [Row] * len(examples)
    assert [json.loads(item.data) for item in found if isinstance(item, Row)] == examples


@settings(deadline=None)
@given(st.lists(EXAMPLES, min_size=1, max_size=5), st.data(), st.sampled_from(SPOILERS), st.booleans())
def test_a_spoilt_row_fails_on_its_line(examples: list[Any], data: st.DataObject, spoil: Any, ascii_only: bool) -> None:
    lines = [spelled(example, (", ", ": "), ascii_only) for example in examples]
    spoilt = data.draw(st.integers(0, len(lines) - 1))
    lines[spoilt] = spoil(lines[spoilt])
    report = check_file(["\n".join(lines).encode()], LIMITS)
    assert {found.line for found in report.findings if found.severity == "error"} == {spoilt + 1}
    assert report.num_examples == len(lines) - 1


@settings(deadline=None, max_examples=300)
@given(EXAMPLES, LAYOUTS, st.booleans(), st.lists(st.sampled_from(SPOILERS), max_size=2), st.data())
def test_what_is_accepted_fast_is_accepted_slowly(
    example: Any, layout: tuple[str, str], ascii_only: bool, spoilers: list[Any], data: st.DataObject
) -> None:
    text = spelled(example, layout, ascii_only)
    for spoil in spoilers:
        text = spoil(text)
    line = bytearray(text.encode())
    for _ in range(data.draw(st.integers(0, 2))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    if accept(bytes(line)) is None:
        return
    value, problems = parse_line(bytes(line), LIMITS)
    assert problems == []
    assert list(check_example(value, LIMITS)) == []


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(1, 50))
def test_any_bytes_get_an_answer(pieces: list[bytes], size: int) -> None:
    data = b"\n".join(pieces)
    whole = [item for item in check_lines([data], LIMITS) if isinstance(item, Finding)]
    cut = [data[start : start + size] for start in range(0, len(data), size)]
    assert [item for item in check_lines(cut, LIMITS) if isinstance(item, Finding)] == whole
