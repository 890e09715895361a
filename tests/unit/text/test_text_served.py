"""What is trained is what is served: each row begins with the ids of the prompt that its last reply will be asked with."""

# ruff: noqa: E501 (templates stand as their models ship them)

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from luthier_text import IGNORED_LABEL, TextError

CHAT = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "It is here."}]
AGAIN = [*CHAT, {"role": "user", "content": "Since when?"}, {"role": "assistant", "content": "Since today."}]
RULE = {"role": "system", "content": "Be brief."}
_OTHERS = (
    "{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
)
# QwQ and the distilled DeepSeek-R1: what was thought is never printed again, not even of the last turn.
FORGETS_THOUGHTS = (
    _OTHERS
    + "{%- else %}{{- '<|im_start|>assistant\\n' + m.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
# Qwen3-Thinking: the last turn has thoughts, if only empty ones.
ALWAYS_THINKS = (
    _OTHERS + "{%- elif loop.last or m.reasoning_content %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
# Mistral 7B v0.3: the system message stands in the last message of the user, and only while nothing follows that.
RULE_COMES_LAST = (
    "{% if messages[0].role == 'system' %}{% set rule = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and rule is defined %}{{ '[INST] ' + rule + '\n\n' + m.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# A template that names the roles that it prints.
NAMES_ROLES = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES_TWO_ROLES = NAMES_ROLES.replace("'system', ", "")
SHAPES = {"thinks": ALWAYS_THINKS, "rule last": RULE_COMES_LAST, "names": NAMES_ROLES}


def _text(pair: Any, ids: list[int]) -> str:
    return str(pair.theirs.decode(ids))


def _learnt(pair: Any, made: Any) -> str:
    assert hasattr(made, "labels"), made
    return _text(pair, [label for label in made.labels if label != IGNORED_LABEL])


def _assert_served(pair: Any, messages: list[dict[str, Any]], made: Any) -> None:
    """The last turn that is learnt comes behind exactly what an engine is asked with."""
    last = max(at for at, each in enumerate(messages) if each["role"] == "assistant" and each.get("weight") != 0)
    prompt = pair.bundle.prompt_ids(messages[:last])
    assert made.input_ids[: len(prompt)] == prompt
    assert made.labels[len(prompt)] == made.input_ids[len(prompt)]
    assert made.labels[len(prompt) - 1] == IGNORED_LABEL


@pytest.fixture(scope="session")
def older_metaspace(metaspace: Tokenizer) -> Tokenizer:
    """As Llama 2 and the first Mistral have it: a space is added behind each control token too."""
    tokenizer = Tokenizer.from_str(metaspace.to_str())
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "older_metaspace"])
@pytest.mark.parametrize("template", ["smollm2", "llama", "mistral", "qwen", "phi", "macro", *SHAPES])
def test_a_row_begins_with_the_prompt_that_is_served(
    make_pair: Any, request: pytest.FixtureRequest, template: str, kind: str
) -> None:
    pair = make_pair(SHAPES.get(template, template), request.getfixturevalue(kind))
    for reply in ("fine", " a space first", "\n\ntwo lines first", "é", "<think>\nhm\n</think>\n\nfine"):
        for chat in ([CHAT[0], {"role": "assistant", "content": reply}], [*AGAIN[:3], {**AGAIN[3], "content": reply}]):
            made = pair.bundle.train_row({"messages": chat})
            _assert_served(pair, chat, made)
            prompt = pair.bundle.render(chat[:-1], add_generation_prompt=True)
            asked = pair.theirs(prompt, add_special_tokens=False)["input_ids"]
            assert made.input_ids[: len(asked)] == asked
            assert _learnt(pair, made).rstrip().endswith(tuple(pair.ends))
            assert pair.bundle.count({"messages": chat}) == len(made.input_ids)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "older_metaspace"])
@pytest.mark.parametrize("template", ["smollm2", "mistral", "qwen", "thinks", "rule last"])
def test_a_border_that_no_token_spans_changes_no_ids(
    make_pair: Any, request: pytest.FixtureRequest, template: str, kind: str
) -> None:
    pair = make_pair(SHAPES.get(template, template), request.getfixturevalue(kind))
    reply = {"role": "assistant", "content": "It is here.", "reasoning_content": "They asked where."}
    for chat in ([CHAT[0], reply], [*CHAT, CHAT[0], reply]):
        made = pair.bundle.train_row({"messages": chat})
        assert made.input_ids == pair.theirs(pair.bundle.render(chat), add_special_tokens=False)["input_ids"]


def test_a_model_that_always_thinks_learns_to_answer_from_where_it_is_asked(make_pair: Any) -> None:
    pair = make_pair(ALWAYS_THINKS)
    assert len(pair.theirs("\n\n", add_special_tokens=False)["input_ids"]) == 1, "the border is inside a token"
    plain = pair.bundle.train_row({"messages": CHAT})
    assert _learnt(pair, plain) == "\n</think>\n\nIt is here.<|im_end|>"
    thought = pair.bundle.train_row({"messages": [CHAT[0], {**CHAT[1], "reasoning": "Easy."}]})
    assert _learnt(pair, thought) == "Easy.\n</think>\n\nIt is here.<|im_end|>"
    assert plain.warnings == thought.warnings == ()
    past = pair.bundle.train_row({"messages": AGAIN})
    assert _learnt(pair, past) == "It is here.<|im_end|>\n</think>\n\nSince today.<|im_end|>"


def test_a_template_that_asks_for_thoughts_and_prints_none_is_refused(make_pair: Any) -> None:
    pair = make_pair(FORGETS_THOUGHTS)
    for chat in (CHAT, AGAIN, [CHAT[0], {**CHAT[1], "content": "<think>\nEasy.\n</think>\n\nIt is here."}]):
        assert pair.bundle.train_row({"messages": chat}).code == "prompt_differs"
    assert _text(pair, pair.bundle.prompt_ids(CHAT[:1])).endswith("<|im_start|>assistant\n<think>\n")


def test_what_a_template_prints_of_the_system_only_when_it_is_asked_is_trained_too(make_pair: Any) -> None:
    pair = make_pair(RULE_COMES_LAST)
    made = pair.bundle.train_row({"messages": [RULE, *AGAIN]})
    assert _text(pair, made.input_ids) == (
        "<s>[INST] Where is it?[/INST]It is here.<|endoftext|>"
        "[INST] Be brief.\n\nSince when?[/INST]Since today.<|endoftext|>"
    )
    assert _learnt(pair, made) == "It is here.<|endoftext|>Since today.<|endoftext|>"
    assert made.warnings == ()
    _assert_served(pair, [RULE, *AGAIN], made)


def test_two_replies_in_a_row_are_trained_as_they_would_be_asked(qwen: Any) -> None:
    chat = [*CHAT, {"role": "assistant", "content": "Look."}]
    made = qwen.bundle.train_row({"messages": chat})
    _assert_served(qwen, chat, made)
    assert _learnt(qwen, made).endswith("It is here.<|im_end|><think>\n\n</think>\n\nLook.<|im_end|>")


@pytest.mark.parametrize("template", ["smollm2", "qwen", *SHAPES])
def test_what_follows_the_last_trained_turn_changes_nothing(make_pair: Any, template: str) -> None:
    pair = make_pair(SHAPES.get(template, template))
    alone = pair.bundle.train_row({"messages": CHAT})
    for tail in (AGAIN[2:3], [AGAIN[2], {**AGAIN[3], "weight": 0}]):
        row = {"messages": [*CHAT, *tail]}
        assert pair.bundle.train_row(row) == alone
        assert pair.bundle.count(row) == len(alone.input_ids)


WORDS = st.lists(
    st.sampled_from(["here", " ", "\n", "\n\n", "é", "<|im_end|>", "<think>", "</think>", "7"]), max_size=5
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "assistant"]), "content": WORDS.map("".join)},
    optional={"weight": st.sampled_from([0, 1]), "reasoning": WORDS.map("".join)},
)


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(MESSAGE, min_size=2, max_size=6))
def test_whatever_is_accepted_is_trained_as_it_is_served(shaped: Any, messages: list[dict[str, Any]]) -> None:
    made = shaped.bundle.train_row({"messages": messages})
    if hasattr(made, "labels") and made.num_trained:
        last = max(at for at, each in enumerate(messages) if each["role"] == "assistant" and each.get("weight") != 0)
        prompt = shaped.bundle.prompt_ids(messages[:last]) if last else []
        assert made.input_ids[: len(prompt)] == prompt
        assert shaped.bundle.count({"messages": messages}) == len(made.input_ids)


@pytest.fixture(scope="module", params=["smollm2", "llama", "qwen", "phi", "macro", *SHAPES])
def shaped(request: pytest.FixtureRequest, make_pair: Any) -> Any:
    return make_pair(SHAPES.get(request.param, request.param))


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (NAMES_TWO_ROLES, [RULE, *CHAT]),
        (NAMES_TWO_ROLES, [{**RULE, "role": "developer"}, *CHAT]),
        (NAMES_ROLES, [CHAT[0], {"role": "tool", "content": "42", "tool_call_id": "c1"}, CHAT[1]]),
    ],
)
def test_a_message_that_the_template_leaves_out_is_refused_in_rows_and_prompts(
    make_pair: Any, template: str, messages: list[dict[str, Any]]
) -> None:
    bundle = make_pair(template).bundle
    made = bundle.train_row({"messages": messages})
    at = next(at for at, each in enumerate(messages) if each["role"] not in ("user", "assistant"))
    assert (made.code, made.message) == ("message_not_rendered", f"the chat template does not print messages[{at}]")
    with pytest.raises(TextError) as caught:
        bundle.prompt_ids(messages[:-1])
    assert caught.value.code == "message_not_rendered"


def test_an_empty_message_may_be_left_out(make_pair: Any) -> None:
    bundle = make_pair(NAMES_TWO_ROLES).bundle
    assert bundle.train_row({"messages": [{**RULE, "content": " \n"}, *CHAT]}) == bundle.train_row({"messages": CHAT})


def test_a_developer_speaks_as_system_where_the_template_knows_only_that(make_pair: Any, smollm2: Any) -> None:
    rule = {**RULE, "role": "developer"}
    bundle = make_pair(NAMES_ROLES).bundle
    assert bundle.train_row({"messages": [rule, *CHAT]}) == bundle.train_row({"messages": [RULE, *CHAT]})
    assert bundle.prompt_ids([rule, CHAT[0]]) == bundle.prompt_ids([RULE, CHAT[0]])
    assert "developer\nBe brief." in _text(smollm2, smollm2.bundle.prompt_ids([rule, CHAT[0]]))


def test_a_refusal_is_what_the_assistant_says(smollm2: Any) -> None:
    said = smollm2.bundle.train_row({"messages": [CHAT[0], {"role": "assistant", "content": "I may not."}]})
    for refused in ({"content": None, "refusal": "I may not."}, {"refusal": "I may not."}):
        assert smollm2.bundle.train_row({"messages": [CHAT[0], {"role": "assistant", **refused}]}) == said
    both = {"role": "assistant", "content": "I may not.", "refusal": "No."}
    assert smollm2.bundle.train_row({"messages": [CHAT[0], both]}) == said
    history = [CHAT[0], {"role": "assistant", "content": None, "refusal": "I may not."}, CHAT[0]]
    assert "I may not." in _text(smollm2, smollm2.bundle.prompt_ids(history))


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_thoughts_that_the_template_leaves_out_are_a_warning(smollm2: Any, qwen: Any, name: str) -> None:
    chat = [CHAT[0], {**CHAT[1], name: "Easy."}]
    assert smollm2.bundle.train_row({"messages": chat}).warnings == ("reasoning_not_rendered",)
    assert qwen.bundle.train_row({"messages": chat}).warnings == ()
    # Of past turns most templates print no thoughts, and mean it.
    assert qwen.bundle.train_row({"messages": [*chat, *CHAT]}).warnings == ()
