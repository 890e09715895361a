"""Long texts take a time that grows with them, whatever they hold, and what is too long for the base is not read."""

from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier_text import TextError
from luthier_text.guard import ControlTokens, pick_mark
from luthier_text.messages import Message, normalize_messages, template_messages

PRIVATE = [chr(code) for code in range(0x100000, 0x10FFFE)]
HOSTILE = ["<|im_end|>", "<|im_end|>a", "<|im_end|> ", "<|<|im_end|>", PRIVATE[0] + "<|im_end|>"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", HOSTILE)
def test_very_many_control_tokens_are_read_in_time(smollm2: Any, piece: str) -> None:
    times = 100_000 if piece == HOSTILE[0] else 25_000
    assert smollm2.bundle.count({"messages": [{"role": "user", "content": piece * times}]}) > times


@pytest.mark.timeout(60)
def test_very_many_tool_calls_are_read_in_time(qwen: Any) -> None:
    call = {"function": {"name": "look", "arguments": "{}"}}
    messages = [{"role": "assistant", "tool_calls": [call]} for _ in range(3_000)]
    assert qwen.bundle.count({"messages": messages}) > 3_000


@pytest.mark.timeout(60)
def test_very_many_turns_are_learnt_in_time(smollm2: Any) -> None:
    messages = [{"role": role, "content": "hello"} for role in ("user", "assistant")] * 2_000
    bundle = smollm2.bundle
    assert bundle.train_row({"messages": messages}, on_overlength="truncate").num_trained > 1_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", ["hello " * 1_000_000, "<|im_end|>" * 1_000_000, "<|im_end|>" * 10_000])
def test_what_cannot_fit_is_refused_unread(smollm2: Any, content: str) -> None:
    with pytest.raises(TextError, match="maximum context length is 8192 tokens") as caught:
        smollm2.bundle.prompt_ids([{"role": "user", "content": content}])
    assert caught.value.code == "context_length_exceeded"


def test_a_text_of_all_private_characters_is_refused_not_a_fault(smollm2: Any) -> None:
    all_but_one = [
        {"role": "user", "content": "".join(PRIVATE[:-1]) + "<|im_end|>"},
        {"role": "assistant", "content": ""},
    ]
    assert pick_mark(["".join(PRIVATE[:-1])]) == PRIVATE[-1]
    assert smollm2.bundle.count({"messages": all_but_one[:1]}) > 65_000
    refused = smollm2.bundle.train_row({"messages": [{"role": "user", "content": "".join(PRIVATE)}, all_but_one[1]]})
    assert refused.code == "bad_messages"


CONTROL = ["<|im_end|>", "<|im_start|>", "<think>", "</s>", "|><|"]
TEXTS = st.lists(st.sampled_from([*CONTROL, "<", "|>", " ", "\n", "a", "é", PRIVATE[0], "im_end"]), max_size=12)


@given(TEXTS)
def test_marks_stand_where_control_tokens_could_be(pieces: list[str]) -> None:
    text = "".join(pieces)
    mark = pick_mark([text])
    assert mark == next(each for each in PRIVATE if each not in text)
    [marked] = ControlTokens(frozenset(CONTROL), frozenset()).mark_messages([{"role": "user", "content": text}], mark)
    expected = text
    for place in sorted(_places(text), reverse=True):
        expected = expected[:place] + mark + expected[place:]
    assert marked["content"] == expected


def _places(text: str) -> set[int]:
    """Behind the first character of each control token, and where a text's end or start could be part of one."""
    places = {at + 1 for at in range(len(text)) if text.startswith(tuple(CONTROL), at)}
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    inside = range(1, end - start + 1)
    parts = [(token, size) for token in CONTROL for size in inside if size < len(token)]
    if any(text[start:end].endswith(token[:size]) for token, size in parts):
        places.add(end)
    if any(text[start:end].startswith(token[-size:]) for token, size in parts):
        places.add(start)
    return places


@settings(deadline=None)
@given(pieces=TEXTS, data=st.data())
def test_a_control_token_with_a_break_inside_is_text_and_any_other_is_not(
    smollm2: Any, pieces: list[str], data: st.DataObject
) -> None:
    text, special, encoder = "".join(pieces), ["<|im_end|>", "<|im_start|>", "</s>"], smollm2.bundle._encoder
    breaks = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    control = {encoder.token_id(token): token for token in special}
    found = encoder.encode(text, breaks, frozenset(control))
    kept = [(start, control[id_]) for id_, (start, _) in zip(found.ids, found.offsets, strict=True) if id_ in control]
    assert kept == [
        (at, token)
        for at in range(len(text))
        for token in special
        if text.startswith(token, at) and not any(at < place < at + len(token) for place in breaks)
    ]


CALL = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": st.sampled_from(["look", "a|b"])})})
TURN = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from(["x", "", "1"])}),
    st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.lists(CALL, max_size=2)}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.just("y"), "tool_calls": st.lists(CALL)}),
)
SILENT = "{% for m in messages %}{{ m.role }}{% if m.content %}{{ m.content }}{% elif m.tool_calls %}call{% endif %};{% endfor %}"  # noqa: E501
NAMELESS = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"  # noqa: E501


@pytest.fixture(scope="module", params=["qwen", "llama", SILENT, NAMELESS], ids=["all", "one", "some", "no names"])
def printing(request: pytest.FixtureRequest, make_pair: Any) -> Any:
    """Templates that print every call, one of a message, those without a content, and calls without names."""
    return make_pair(request.param)


@settings(deadline=None)
@given(messages=st.lists(TURN, min_size=1, max_size=6))
def test_calls_are_refused_exactly_where_the_text_is_the_same_without_them(printing: Any, messages: Any) -> None:
    ready = template_messages(normalize_messages(messages, {}))
    try:
        whole = printing.bundle.render(ready)
    except TextError:
        return

    def is_printed(index: int, message: Message) -> bool:
        without = {key: value for key, value in message.items() if key != "tool_calls"}
        try:
            return bool(printing.bundle.render([*ready[:index], without, *ready[index + 1 :]]) != whole)
        except TextError:
            return True

    are_printed = all(is_printed(index, message) for index, message in enumerate(ready) if message.get("tool_calls"))
    with nullcontext() if are_printed else pytest.raises(TextError, match="does not print the tool calls"):
        printing.bundle.count({"messages": messages})
