"""What is learnt: every turn of the assistant with its end token, and nothing else."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from luthier_text import IGNORED_LABEL, TextError

CHAT = [
    {"role": "user", "content": "Uno 11"},
    {"role": "assistant", "content": "Alpha é🎉 12"},
    {"role": "user", "content": "Due"},
    {"role": "assistant", "content": "Beta"},
]
ASKED_IN_THE_REPLY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ messages[loop.index0 - 1].content + '=' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LEARNT = {
    "smollm2": ["Alpha é🎉 12<|im_end|>", "Beta<|im_end|>"],
    "llama": ["Alpha é🎉 12<|eot_id|>", "Beta<|eot_id|>"],
    "mistral": ["Alpha é🎉 12</s>", "Beta</s>"],
    "qwen": ["Alpha é🎉 12<|im_end|>", "<think>\n\n</think>\n\nBeta<|im_end|>"],
    "phi": ["Alpha é🎉 12<|end|>", "Beta<|end|>"],
    "macro": ["Alpha é🎉 12<|endoftext|>", "Beta<|endoftext|>"],
}


def _spans(pair: Any, made: Any) -> list[str]:
    """The learnt stretches as text."""
    assert hasattr(made, "labels"), made
    assert len(made.labels) == len(made.input_ids)
    stretches: list[list[int]] = [[]]
    for id_, label in zip(made.input_ids, made.labels, strict=True):
        if label == IGNORED_LABEL:
            stretches.append([])
        else:
            assert label == id_
            stretches[-1].append(id_)
    assert made.num_trained == sum(map(len, stretches))
    tokenizer: PreTrainedTokenizerFast = pair.theirs
    return [str(tokenizer.decode(ids)) for ids in stretches if ids]


def test_each_turn_of_the_assistant_is_learnt_with_its_end(pair: Any) -> None:
    made = pair.bundle.train_row({"messages": CHAT})
    assert _spans(pair, made) == LEARNT[pair.name]
    assert made.warnings == ()
    assert pair.bundle.eos_ids == {pair.theirs.convert_tokens_to_ids(token) for token in pair.ends}


def test_a_turn_of_weight_0_is_not_learnt(pair: Any) -> None:
    silent = [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]
    made, whole = (pair.bundle.train_row({"messages": chat}) for chat in (silent, CHAT))
    assert _spans(pair, made) == LEARNT[pair.name][1:]
    assert made.input_ids == whole.input_ids


@pytest.mark.parametrize("weight", [2, 0.5, "0", True])
def test_other_weights_are_refused(smollm2: Any, weight: object) -> None:
    assert smollm2.bundle.train_row({"messages": [CHAT[0], {**CHAT[1], "weight": weight}]}).code == "bad_weight"


def test_nothing_of_others_is_learnt_and_nothing_of_the_assistant_missed(pair: Any, chats: list[Any]) -> None:
    num_rows = 0
    for chat in chats:
        named = [
            {**message, "content": f"{message['role'].upper()}{number}X {message['content']} Y{number}"}
            for number, message in enumerate(chat)
        ]
        made = pair.bundle.train_row({"messages": named})
        if not hasattr(made, "labels"):
            assert made.code in {"nothing_to_learn", "template_refused"}
            continue
        num_rows += 1
        learnt = "".join(_spans(pair, made))
        for message in named:
            is_learnt = message["content"].strip() in learnt
            assert is_learnt == (message["role"] == "assistant")
            assert message["role"] == "assistant" or message["role"].upper() not in learnt
    assert num_rows >= 27


def test_the_prompt_of_each_turn_comes_before_what_is_learnt(smollm2: Any) -> None:
    made = smollm2.bundle.train_row({"messages": CHAT})
    prompt = smollm2.bundle.prompt_ids(CHAT[:3])
    assert made.input_ids[: len(prompt)] == prompt
    assert made.labels[len(prompt) - 1] == IGNORED_LABEL
    assert made.labels[len(prompt)] == made.input_ids[len(prompt)]


def test_a_reply_that_begins_with_a_space_is_learnt_behind_the_prompt_alone(smollm2: Any) -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "\n y"}]
    made = smollm2.bundle.train_row({"messages": chat})
    assert _spans(smollm2, made) == ["\n y<|im_end|>"]
    assert made.warnings == ()
    # A past reply is read as it is in the prompt of the next.
    past = smollm2.bundle.train_row({"messages": [*chat, *CHAT[2:]]})
    assert _spans(smollm2, past) == ["\n\n y<|im_end|>", "Beta<|im_end|>"]
    assert past.warnings == ("turn_border_inside_token",)


def test_calls_of_tools_are_learnt_and_their_results_not(qwen: Any, tools: list[Any]) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "get_weather", "arguments": '{"city": "Uster"}'}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is fine."},
    ]
    made = qwen.bundle.train_row({"messages": messages, "tools": tools})
    assert _spans(qwen, made) == [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Uster"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nIt is fine.<|im_end|>",
    ]


def test_a_past_turn_without_the_thoughts_that_the_engine_supplies(make_pair: Any) -> None:
    made = (pair := make_pair("qwen", variables={"enable_thinking": False})).bundle.train_row({"messages": CHAT})
    assert _spans(pair, made) == ["Alpha é🎉 12<|im_end|>", "Beta<|im_end|>"]


def test_an_end_printed_after_the_last_turn_belongs_to_it(make_pair: Any) -> None:
    pair = make_pair(
        "{% for m in messages %}{% if not loop.first %}\n{% endif %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    )
    made = pair.bundle.train_row({"messages": CHAT[:2]})
    assert not hasattr(made, "labels") or _spans(pair, made) == ["Alpha é🎉 12<|endoftext|>"]


@pytest.mark.parametrize(
    ("template", "code"),
    [
        # The turn of a message is printed by no loop over messages.
        ("{% for i in range(messages|length) %}{{ messages[i].content + eos_token }}{% endfor %}", "turn_not_tracked"),
        # The question is printed inside the turn of the reply.
        (ASKED_IN_THE_REPLY, "turn_mixes_roles"),
        # The template looks at how the whole text ends: the marks would change it.
        (
            "{% set all %}{% for m in messages %}{{ m.content + '.' }}{% endfor %}{% endset %}{{ all | length }}",
            "turn_not_tracked",
        ),
        ("{% for m in messages %}{{ m.role }}{% endfor %}{{ messages[9].content }}", "template_refused"),
    ],
)
def test_a_template_whose_turns_cannot_be_told_is_refused(make_pair: Any, template: str, code: str) -> None:
    assert make_pair(template).bundle.train_row({"messages": CHAT}).code == code


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({}, "bad_messages"),
        ({"messages": []}, "no_messages"),
        ({"messages": ["hi"]}, "bad_messages"),
        ({"messages": [{"role": "narrator", "content": "hi"}]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": 1}]}, "bad_messages"),
        ({"messages": CHAT[:1]}, "nothing_to_learn"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "nothing_to_learn"),
        ({"messages": [{"role": "user"}, CHAT[1]]}, "template_refused"),
        ({"messages": [CHAT[0], {"role": "assistant", "function_call": {"name": "f"}}]}, "legacy_functions"),
        ({"messages": CHAT, "functions": []}, "legacy_functions"),
        ({"messages": CHAT, "tools": {}}, "bad_tools"),
        ({"messages": CHAT, "tools": [1]}, "bad_tools"),
        ({"messages": CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools_not_rendered"),
        ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{"function": {"name": "zz"}}]}]}, "tool_calls_not_rendered"),
        ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{}]}]}, "bad_messages"),
        ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": 3}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": "a\ud800"}, CHAT[1]]}, "lone_surrogate"),
    ],
)
def test_refusals_carry_stable_codes(smollm2: Any, row: dict[str, Any], code: str) -> None:
    assert smollm2.bundle.train_row(row).code == code


def test_a_row_nested_too_deeply_is_refused(smollm2: Any) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"x": deep}
    assert smollm2.bundle.train_row({"messages": [{**CHAT[0], "extra": deep}, CHAT[1]]}).code == "bad_messages"


def test_rows_that_are_too_long(smollm2: Any) -> None:
    row = {"messages": CHAT}
    num_tokens = smollm2.bundle.count(row)
    whole = smollm2.bundle.train_row(row, max_length=num_tokens)
    assert smollm2.bundle.train_row(row, max_length=num_tokens - 1).code == "row_too_long"
    assert smollm2.bundle.train_row(row, max_length=num_tokens - 1, on_overlength="drop").code == "row_dropped"
    cut = smollm2.bundle.train_row(row, max_length=num_tokens - 2, on_overlength="truncate")
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:-2], whole.labels[:-2])
    assert cut.warnings == ("truncated",)
    assert smollm2.bundle.train_row(row, max_length=3, on_overlength="truncate").code == "nothing_to_learn"
    long = {"messages": [CHAT[0], {"role": "assistant", "content": "word 7 " * 3000}]}
    assert smollm2.bundle.train_row(long, max_length=10**6).code == "row_too_long"
    assert smollm2.bundle.count(long) > smollm2.bundle.context_length == 8192


def test_count_says_why_it_cannot(smollm2: Any) -> None:
    with pytest.raises(TextError) as caught:
        smollm2.bundle.count({"messages": []})
    assert caught.value.code == "no_messages"
