"""Messages as clients send them, made into what templates expect; pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier_text.errors import TextError

Message = dict[str, Any]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
TRAINED_ROLE = "assistant"
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def normalize_messages(messages: object, roles: Mapping[str, str]) -> list[Message]:
    """Join text parts, parse tool call arguments, drop weights; raises `TextError` for what templates cannot say.

    `roles` says under which other name a role is known to the template.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise TextError("bad_messages", "messages must be a list")
    if not messages:
        raise TextError("no_messages", "messages must not be empty")
    return [_normalize_message(index, message, roles) for index, message in enumerate(messages)]


def _normalize_message(index: int, message: object, roles: Mapping[str, str]) -> Message:
    if not isinstance(message, Mapping):
        raise TextError("bad_messages", f"messages[{index}] must be an object")
    role = message.get("role")
    if role == "function" or message.get("function_call") is not None:
        raise TextError("legacy_functions", f"messages[{index}]: use tool_calls and role tool, not function_call")
    if not isinstance(role, str) or role not in ROLES:
        raise TextError("unknown_role", f"messages[{index}].role must be one of {', '.join(sorted(ROLES))}")
    clean: Message = {key: value for key, value in message.items() if value is not None and key != "weight"}
    clean["role"] = roles.get(role, role)
    if role == TRAINED_ROLE and "refusal" in clean:
        # OpenAI writes a refusal beside the content, templates know the content only.
        clean.setdefault("content", clean.pop("refusal"))
    if "content" in clean:
        clean["content"] = _join_parts(index, clean["content"])
    if "tool_calls" in clean:
        clean["tool_calls"] = _parse_calls(index, clean["tool_calls"])
    return clean


def _join_parts(index: int, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TextError("bad_messages", f"messages[{index}].content must be a string or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise TextError("content_part_unsupported", f"messages[{index}].content[{number}] must be a text part")
        texts.append(text)
    return "".join(texts)


def _parse_calls(index: int, calls: object) -> list[Any]:
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise TextError("bad_messages", f"messages[{index}].tool_calls must be a list")
    return [_parse_call(index, number, call) for number, call in enumerate(calls)]


def _parse_call(index: int, number: int, call: object) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TextError("bad_messages", f"messages[{index}].tool_calls[{number}] must be an object with function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        # Most templates print the arguments with tojson: as a string they would be quoted twice.
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}


def check_tools(tools: object) -> list[Any] | None:
    """Tools as a list of objects, or None where there are none."""
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise TextError("bad_tools", "tools must be a list")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise TextError("bad_tools", "every tool must be an object")
    return list(tools) or None


def trained_turns(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the assistant's messages whose weight is not 0."""
    turns = []
    for index, message in enumerate(messages):
        weight = message.get("weight")
        if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
            raise TextError("bad_weight", f"messages[{index}].weight must be 0 or 1")
        if message.get("role") == TRAINED_ROLE and weight != 0:
            turns.append(index)
    return turns


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Fresh plain copies as transformers hands them to a template: no None fields, reasoning under all its names."""
    return [_alias_reasoning({k: plain(v) for k, v in message.items() if v is not None}) for message in messages]


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What the assistant thought before a reply, of a message as templates get it."""
    return str(message.get("reasoning_content") or "").strip()


def _alias_reasoning(message: Message) -> Message:
    reasoning = next((message[key] for key in _REASONING_FIELDS if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def plain(value: Any) -> Any:
    """A copy out of plain JSON types only, so that a template sees no methods of ours."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
