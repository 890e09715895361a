"""The response object, its items, and what is kept of them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.lists import Wire, unix, unix_or_none
from luthier_common.kit.mongo import Doc

Status = Literal["in_progress", "completed", "incomplete", "failed"]
Role = Literal["user", "assistant", "system", "developer"]


class InputText(TypedDict):
    type: Literal["input_text"]
    text: str


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Wire]
    logprobs: list[Wire]


class InputItem(TypedDict):
    """A message that the model was given."""

    id: str
    type: Literal["message"]
    role: Role
    status: Literal["completed"]
    content: list[InputText | OutputText]


class OutputMessage(TypedDict):
    """A message that the model wrote."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ResponseFault(TypedDict):
    code: str
    message: str


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class TextFormat(TypedDict):
    type: Literal["text"]


class TextConfig(TypedDict):
    format: TextFormat


class ResponseObject(TypedDict):
    """`output_text` is the text of all output together. `x_dropped_messages` is how many of the oldest messages were
    left out, where `truncation` is `auto` and not all of them fit.
    """

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: ResponseFault | None
    incomplete_details: IncompleteDetails | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    output_text: str
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    top_logprobs: Literal[0]
    text: TextConfig
    tool_choice: Literal["auto", "none"]
    tools: list[Wire]
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: Literal["default"]
    x_dropped_messages: int


def response_object(response: Doc, view: View) -> ResponseObject:
    asked = response["asked"]
    usage = response["usage"]
    if usage is None and view.dialect == "mka1":
        usage = response_usage({})  # Its client fails over a response without counts, even where none can be known.
    return {
        "id": response["_id"],
        "object": "response",
        "created_at": unix(response["created_at"]),
        "completed_at": unix_or_none(response["completed_at"]),
        "status": response["status"],
        "error": response["error"],
        "incomplete_details": {"reason": "max_output_tokens"} if response["status"] == "incomplete" else None,
        "background": False,
        "instructions": asked["instructions"],
        "max_output_tokens": asked["max_output_tokens"],
        "max_tool_calls": asked["max_tool_calls"],
        "metadata": {pair["k"]: pair["v"] for pair in response["metadata"]},
        "model": response["model"],
        "output": response["output"],
        "output_text": output_text(response),
        "parallel_tool_calls": asked["parallel_tool_calls"],
        "previous_response_id": response["previous"],
        "store": asked["store"],
        "temperature": asked["temperature"],
        "top_p": asked["top_p"],
        "frequency_penalty": asked["frequency_penalty"],
        "presence_penalty": asked["presence_penalty"],
        "top_logprobs": 0,
        "text": {"format": {"type": "text"}},
        "tool_choice": asked["tool_choice"],
        "tools": [],
        "truncation": asked["truncation"],
        "usage": usage,
        "user": asked["user"],
        "safety_identifier": asked["safety_identifier"],
        "prompt_cache_key": asked["prompt_cache_key"],
        "service_tier": "default",
        "x_dropped_messages": response.get("num_dropped", 0),
    }


def output_text(response: Doc) -> str:
    return "".join(part["text"] for message in response["output"] for part in message["content"])


def output_part(text: str) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def output_message(message_id: str, text: str, *, is_whole: bool) -> OutputMessage:
    status: Literal["completed", "incomplete"] = "completed" if is_whole else "incomplete"
    content = [output_part(text)]
    return {"id": message_id, "type": "message", "role": "assistant", "status": status, "content": content}


def response_usage(usage: Mapping[str, Any]) -> ResponseUsage:
    """The counts of a chat completion under the names of responses."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.get("total_tokens", 0),
    }


def ended(response: Doc, message_id: str, text: str, reason: str, usage: Mapping[str, Any], at: datetime) -> Doc:
    """The response with its answer; it is incomplete when the token limit ended it."""
    is_whole = reason != "length"
    return {
        **response,
        "status": "completed" if is_whole else "incomplete",
        "completed_at": at if is_whole else None,
        "output": [output_message(message_id, text, is_whole=is_whole)],
        "usage": response_usage(usage),
    }


def broken(response: Doc, message_id: str, text: str, message: str) -> Doc:
    """The response whose answer broke off, with the part of it that came."""
    output = [output_message(message_id, text, is_whole=False)] if text else []
    error: ResponseFault = {"code": "server_error", "message": message}
    return {**response, "status": "failed", "output": output, "error": error}
