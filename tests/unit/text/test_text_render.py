"""The text and ids of a chat are those of transformers."""

from typing import Any

import pytest
from jinja2 import TemplateError

from luthier_text import TextError


def _theirs(pair: Any, chat: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return str(pair.theirs.apply_chat_template(chat, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError):
        return None


def _ours(pair: Any, chat: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return str(pair.bundle.render(chat, **options))
    except TextError as error:
        return None if error.code == "template_refused" else error.code


def test_text_equals_transformers(pair: Any, chats: list[Any], tools: list[Any]) -> None:
    for chat in chats:
        for prompt in (False, True):
            for given in (None, tools):
                ours, theirs = (
                    made(pair, chat, add_generation_prompt=prompt, tools=given) for made in (_ours, _theirs)
                )
                if pair.name == "llama" and theirs is not None:
                    from_today = theirs.split("Today Date: ")[1].split("\n")[0]
                    theirs = theirs.replace(f"Today Date: {from_today}", "Today Date: 21 Nov 2026", 1)
                assert ours == theirs


def test_ids_equal_transformers(pair: Any, chats: list[Any]) -> None:
    num_equal = 0
    for chat in chats:
        asked, text = (_ours(pair, chat, add_generation_prompt=prompt) for prompt in (True, False))
        if asked is not None:
            assert pair.bundle.prompt_ids(chat) == _ids(pair, asked)
            num_equal += 1
        if text is not None:
            row = pair.bundle.train_row({"messages": chat})
            expected = _served_ids(pair, chat, text)
            assert pair.bundle.count({"messages": chat}) == len(expected)
            assert not hasattr(row, "input_ids") or row.input_ids == expected
            num_equal += 1
    assert num_equal >= 36


def _ids(pair: Any, text: str) -> list[int]:
    ids: list[int] = pair.theirs(text, add_special_tokens=False)["input_ids"]
    return ids


def _served_ids(pair: Any, chat: list[dict[str, Any]], text: str) -> list[int]:
    """Those of prompt and reply, each alone; where no white space meets at the border, those of the whole text."""
    if chat[-1]["role"] != "assistant":
        return _ids(pair, text)
    prompt = str(_ours(pair, chat[:-1], add_generation_prompt=True))
    assert text.startswith(prompt)
    served = _ids(pair, prompt) + _ids(pair, text[len(prompt) :])
    may_meet = prompt.endswith(("\n\n", " ")) or text[len(prompt)].isspace()
    assert served == _ids(pair, text) or may_meet
    return served


def test_tool_calls_render_as_transformers_renders_them(qwen: Any, tools: list[Any]) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "n": 1}}}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nIt is sunny."},
    ]
    assert qwen.bundle.render(chat, tools=tools) == _theirs(qwen, chat, tools=tools)
    assert "Zürich" in qwen.bundle.render(chat, tools=tools)


def test_variables_reach_the_template(qwen: Any) -> None:
    chat = [{"role": "user", "content": "hi"}]
    options: dict[str, Any] = {"add_generation_prompt": True}
    assert qwen.bundle.render(chat, variables={"enable_thinking": False}, **options) == _theirs(
        qwen, chat, enable_thinking=False, **options
    )


def test_the_date_is_pinned_or_the_templates_own(make_pair: Any) -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert "26 Jul 2024" in make_pair("llama").bundle.render(chat)
    assert "01 Feb 2025" in make_pair("llama", variables={"strftime_now": "2025-02-01"}).bundle.render(chat)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ namespace(__class__=1) }}",
    ],
)
def test_a_template_that_breaks_out_or_fails_is_refused(make_pair: Any, template: str) -> None:
    with pytest.raises(TextError) as caught:
        make_pair(template).bundle.render([{"role": "user", "content": "hi"}])
    assert caught.value.code == "template_refused"


def test_a_template_that_does_not_compile_is_a_bad_bundle(make_pair: Any) -> None:
    with pytest.raises(TextError) as caught:
        make_pair("{% for %}")
    assert caught.value.code == "bad_bundle"


def test_text_parts_are_joined_and_other_parts_refused(smollm2: Any) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert smollm2.bundle.prompt_ids([{"role": "user", "content": parts}]) == smollm2.bundle.prompt_ids(
        [{"role": "user", "content": "hello"}]
    )
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "text", None):
        refused = smollm2.bundle.train_row({"messages": [{"role": "user", "content": [part]}]})
        assert refused.code == "content_part_unsupported"
