"""What a chat completion's body may say, and the shapes of answers and errors."""

import json
import subprocess
import sys
from typing import Any

import pytest

from luthier_inference.chat import Header, InvalidRequestError, Usage, chunk, completion, error_to_wire, parse_chat
from luthier_inference.domain import EngineBusyError, FinishReason

BODY: dict[str, Any] = {"base": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def test_defaults_are_those_of_openai() -> None:
    sampling = parse_chat(BODY).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (1.0, 1.0, None, ())


def test_what_is_given_is_honoured() -> None:
    given = {"max_completion_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": -3, "stop": "x", "stream": True}
    body = parse_chat({**BODY, **given, "stream_options": {"include_usage": True}})
    assert body.stream
    assert body.include_usage
    assert (body.sampling.max_tokens, body.sampling.temperature, body.sampling.seed) == (5, 0, -3)
    assert body.sampling.stop == ("x",)


@pytest.mark.parametrize(
    "neutral", [{"n": 1}, {"logprobs": None}, {"response_format": {"type": "text"}}, {"tools": []}, {"stop": None}]
)
def test_parameters_that_change_nothing_are_accepted(neutral: dict[str, Any]) -> None:
    assert parse_chat({**BODY, **neutral}) == parse_chat(BODY)


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"min_p": 0.1}, "unsupported_parameter", "min_p"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_p": -1}, "invalid_value", "top_p"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"stop": 5}, "invalid_value", "stop"),
        ({"messages": "Hello"}, "invalid_value", "messages"),
        ({"stream_options": {"x": 1}}, "invalid_value", "stream_options.x"),
        (
            {"adapter": {"model_id": "m", "key": "k/", "manifest_sha256": "0"}},
            "invalid_value",
            "adapter.manifest_sha256",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(wrong: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat({**BODY, **wrong})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_answer_and_chunk_have_the_shapes_of_openai() -> None:
    header = Header.new("chatcmpl-1", "tiny", "fp_1")
    whole = completion(header, ["He", "llo"], FinishReason.STOP, Usage(3, 2))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    last = chunk(header, {}, FinishReason.LENGTH, null_usage=True)
    assert json.loads(json.dumps(last))["choices"][0]["finish_reason"] == "length"
    assert last["usage"] is None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineBusyError("busy"), 429, "engine_overloaded"),
        (InvalidRequestError("invalid_value", "no", "n"), 400, "invalid_value"),
        (RuntimeError("a secret"), 500, "internal_error"),
    ],
)
def test_errors_have_status_and_code(error: Exception, status: int, code: str) -> None:
    told, envelope = error_to_wire(error)
    assert (told, envelope["error"]["code"]) == (status, code)
    assert "secret" not in json.dumps(envelope)


def test_the_room_starts_without_torch() -> None:
    look = "import sys, luthier_inference.bootstrap; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
