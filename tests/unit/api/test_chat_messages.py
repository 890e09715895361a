"""Which messages chat takes: a reply may lack its content where a row to train on may lack it too."""

from typing import Any

import pytest

from luthier_api.dialects.openai.chat import read_chat
from luthier_api.errors import ApiError, ErrorCode
from luthier_datachecks.chat import check_example
from luthier_datachecks.findings import Limits

USER = {"role": "user", "content": "hi"}
CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def codes_of(messages: list[dict[str, Any]]) -> set[str]:
    return {problem.code for problem in check_example({"messages": messages}, Limits())}


@pytest.mark.parametrize(
    "said",
    [
        {"refusal": "I may not."},
        {"content": None, "refusal": "I may not."},
        {"content": None, "tool_calls": [CALL]},
        {"content": "yes", "refusal": None},
    ],
)
def test_what_the_assistant_said_in_another_field_stands_for_its_content(said: dict[str, Any]) -> None:
    messages = [USER, {"role": "assistant", **said}, USER, {"role": "assistant", "content": "yes"}]
    assert read_chat({"model": "m", "messages": messages})["messages"] == messages
    assert codes_of(messages) == set()


@pytest.mark.parametrize(
    "silent", [{"role": "assistant"}, {"role": "assistant", "refusal": ""}, {"role": "user", "refusal": "I may not."}]
)
def test_a_message_that_says_nothing_is_refused_by_name(silent: dict[str, Any]) -> None:
    messages = [USER, silent, USER, {"role": "assistant", "content": "yes"}]
    with pytest.raises(ApiError) as caught:
        read_chat({"model": "m", "messages": messages})
    assert (caught.value.error, caught.value.param) == (ErrorCode.MISSING_PARAMETER, "messages[1].content")
    assert "missing_content" in codes_of(messages)
