"""The rules of a chat example: `{messages, tools?, parallel_tool_calls?}`."""

import json
from collections.abc import Iterator
from typing import Any

from luthier_datachecks.findings import Limits, Problem
from luthier_datachecks.parse import child_path

ROLES = ("system", "developer", "user", "assistant", "tool")
EXAMPLE_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
REASONING_KEYS = frozenset({"reasoning_content", "reasoning", "thinking"})
MESSAGE_KEYS = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "weight", "tool_calls", "refusal"}) | REASONING_KEYS,
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
OPTIONAL_TEXTS = ("name", "refusal", *sorted(REASONING_KEYS))


def check_example(example: Any, limits: Limits) -> Iterator[Problem]:
    """Everything that is wrong or doubtful in one parsed row."""
    if not isinstance(example, dict):
        yield Problem("data_type")
        return
    for key in sorted(example.keys() - EXAMPLE_KEYS):
        yield Problem("unrecognized_key", child_path("", key))
    yield from _check_tools(example, limits)
    messages = example.get("messages")
    if not isinstance(messages, list):
        yield Problem("missing_messages_list", "messages")
    elif not messages:
        yield Problem("empty_messages_list", "messages")
    else:
        yield from _check_messages(messages)


def roles_of(example: dict[str, Any]) -> tuple[str, ...]:
    """The roles of an example without errors."""
    return tuple(message["role"] for message in example["messages"])


def _check_messages(messages: list[Any]) -> Iterator[Problem]:
    call_ids: set[str] = set()
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            yield Problem("message_not_object", path)
            continue
        yield from _check_message(message, path, call_ids)
        call_ids |= _call_ids(message)
    replies = [item for item in messages if isinstance(item, dict) and item.get("role") == "assistant"]
    if not replies:
        yield Problem("example_missing_assistant_message", "messages")
    elif all(_is_zero(reply.get("weight")) for reply in replies):
        yield Problem("nothing_to_train", "messages")
    elif messages[-1] is not replies[-1]:
        yield Problem("last_message_not_assistant", f"messages[{len(messages) - 1}]")


def _check_message(message: dict[str, Any], path: str, call_ids: set[str]) -> Iterator[Problem]:
    role = message.get("role")
    if role == "function" or message.get("function_call") is not None:
        yield Problem("legacy_functions", path)
        return
    if "role" not in message:
        yield Problem("message_missing_key", f"{path}.role", "The message has no role.")
        return
    if role not in ROLES:
        yield Problem("unrecognized_role", f"{path}.role", f"The role must be one of {', '.join(ROLES)}.")
        return
    yield from _check_keys(message, path)
    yield from _check_content(message, path)
    if role == "assistant":
        yield from _check_reply(message, path)
    elif role == "tool":
        yield from _check_tool_answer(message, path, call_ids)


def _check_keys(message: dict[str, Any], path: str) -> Iterator[Problem]:
    for key in sorted(message.keys() - MESSAGE_KEYS[message["role"]]):
        if key == "weight":
            yield Problem("weight_not_allowed", f"{path}.weight")
        elif message[key] is not None:
            yield Problem("message_unrecognized_key", child_path(path, key), "The key is not known for this role.")
    for key in OPTIONAL_TEXTS:
        if not isinstance(message.get(key), str | None):
            yield Problem("invalid_type", f"{path}.{key}", f"{key} must be a string.")


def _check_content(message: dict[str, Any], path: str) -> Iterator[Problem]:
    content, inner = message.get("content"), f"{path}.content"
    if content is None:
        if message["role"] != "assistant" or not (message.get("tool_calls") or message.get("refusal")):
            yield Problem("missing_content", inner)
    elif isinstance(content, str):
        yield from _check_emptiness(message, content, inner)
    elif not isinstance(content, list):
        yield Problem("invalid_type", inner, "content must be a string or a list of text parts.")
    elif not content:
        yield Problem("missing_content", inner)
    else:
        for index, part in enumerate(content):
            yield from _check_part(part, f"{inner}[{index}]")
        if all(_is_text_part(part) for part in content):
            yield from _check_emptiness(message, "".join(part["text"] for part in content), inner)


def _check_emptiness(message: dict[str, Any], content: str, path: str) -> Iterator[Problem]:
    if content or message["role"] == "tool" or message.get("tool_calls"):
        return
    is_reply = message["role"] == "assistant" and not _is_zero(message.get("weight"))
    yield Problem("missing_content" if is_reply else "empty_content", path)


def _check_part(part: Any, path: str) -> Iterator[Problem]:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        yield Problem("invalid_type", path, "A content part must be an object with a type.")
    elif part["type"] != "text":
        yield Problem("unsupported_content_part", path)
    elif not isinstance(part.get("text"), str):
        yield Problem("invalid_type", f"{path}.text", "text must be a string.")


def _check_reply(message: dict[str, Any], path: str) -> Iterator[Problem]:
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        yield Problem("invalid_weight", f"{path}.weight")
    calls, inner = message.get("tool_calls"), f"{path}.tool_calls"
    if calls is None:
        return
    if not isinstance(calls, list) or not calls:
        yield Problem("invalid_type", inner, "tool_calls must be a list with at least one call.")
        return
    for index, call in enumerate(calls):
        yield from _check_call(call, f"{inner}[{index}]")


def _check_call(call: Any, path: str) -> Iterator[Problem]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
        yield Problem("invalid_tool_call", path)
        return
    if not isinstance(call.get("id"), str):
        yield Problem("invalid_tool_call", f"{path}.id", "The call needs an id.")
    if not isinstance(function.get("name"), str) or not function["name"]:
        yield Problem("invalid_tool_call", f"{path}.function.name", "The call needs the name of its function.")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        yield Problem("tool_arguments_not_string", f"{path}.function.arguments")
    elif not _is_json_object(arguments):
        yield Problem("tool_arguments_not_json", f"{path}.function.arguments")


def _check_tool_answer(message: dict[str, Any], path: str, call_ids: set[str]) -> Iterator[Problem]:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str):
        yield Problem("message_missing_key", f"{path}.tool_call_id", "A tool message needs a tool_call_id.")
    elif call_id not in call_ids:
        yield Problem("unknown_tool_call_id", f"{path}.tool_call_id")


def _check_tools(example: dict[str, Any], limits: Limits) -> Iterator[Problem]:
    if example.get("functions") is not None:
        yield Problem("legacy_functions", "functions")
    if not isinstance(example.get("parallel_tool_calls"), bool | None):
        yield Problem("invalid_type", "parallel_tool_calls", "parallel_tool_calls must be true or false.")
    tools = example.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list) or not 1 <= len(tools) <= limits.max_tools:
        yield Problem("invalid_tool", "tools", f"tools must be a list of 1 to {limits.max_tools} tools.")
        return
    for index, tool in enumerate(tools):
        yield from _check_tool(tool, f"tools[{index}]")


def _check_tool(tool: Any, path: str) -> Iterator[Problem]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
        yield Problem("invalid_tool", path)
        return
    if not isinstance(function.get("name"), str) or not function["name"]:
        yield Problem("invalid_tool", f"{path}.function.name", "The tool needs a name.")
    if not isinstance(function.get("parameters"), dict | None):
        yield Problem("invalid_tool", f"{path}.function.parameters", "parameters must be a JSON Schema object.")


def _call_ids(message: dict[str, Any]) -> set[str]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return set()
    return {call["id"] for call in calls if isinstance(call, dict) and isinstance(call.get("id"), str)}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_zero(weight: Any) -> bool:
    return not isinstance(weight, bool) and weight == 0


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
