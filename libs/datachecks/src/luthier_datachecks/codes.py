"""The stable codes of findings; the documentation is generated from this table."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Code(NamedTuple):
    """An error makes the file unusable; a warning says that something is accepted but perhaps not meant."""

    severity: Severity
    sentence: str


_ERRORS = {
    "invalid_n_examples": "The file has too few or too many examples.",
    "compressed_file": "The file is compressed or an archive; upload plain JSONL.",
    "unsupported_file_type": "The file is not JSON Lines text (UTF-16 or Parquet, for example).",
    "line_too_long": "A line is longer than 8 MiB.",
    "invalid_utf8": "A line is not valid UTF-8.",
    "invalid_json": "A line is not one complete JSON value.",
    "too_deep": "Objects and arrays are nested more than 64 deep.",
    "too_many_keys": "An object has more than 10,000 keys.",
    "duplicate_key": "An object has the same key twice; readers differ in which one they take.",
    "nul_character": "A string contains the character NUL.",
    "lone_surrogate": "A string contains half of a UTF-16 surrogate pair.",
    "not_a_number": "NaN, Infinity and numbers beyond 64 bits are not JSON that every reader understands.",
    "data_type": "A line is not a JSON object.",
    "missing_messages_list": "An example has no list `messages`.",
    "empty_messages_list": "The list `messages` is empty.",
    "message_not_object": "A message is not an object.",
    "message_missing_key": "A message lacks a key that its role needs.",
    "message_unrecognized_key": "A message has a key that is not known for its role.",
    "unrecognized_role": "A role is not one of system, developer, user, assistant, tool.",
    "legacy_functions": "`functions`, `function_call` and the role function: use tools, tool_calls and the role tool.",
    "missing_content": "A message has no content, or a reply that is trained on is empty; an assistant message with "
    "tool_calls may lack it, and one with a refusal may leave `content` out or null.",
    "invalid_type": "A value has another type than the format asks for.",
    "invalid_value": "A value is not one of those that the format allows.",
    "unsupported_content_part": "Only text parts can be trained on; images, audio and files cannot.",
    "weight_not_allowed": "`weight` is only for assistant messages.",
    "invalid_weight": "`weight` must be 0 or 1.",
    "example_missing_assistant_message": "An example has no assistant message, so there is nothing to learn.",
    "nothing_to_train": "Every assistant message has weight 0, so there is nothing to learn.",
    "invalid_tool_call": "A tool call is not `{id, type: function, function: {name, arguments}}`.",
    "tool_arguments_not_string": "The arguments of a tool call must be a string that contains JSON.",
    "unknown_tool_call_id": "A tool message answers a call that no earlier assistant message made.",
    "invalid_tool": "`tools` is no list of 1 to 128 tools, or a tool is not `{type: function, function: {name, ...}}`.",
}
_WARNINGS = {
    "blank_line": "There are empty lines between examples; they are skipped.",
    "unrecognized_key": "An example has a key that training does not use.",
    "last_message_not_assistant": "An example does not end with an assistant message; what follows the last is unused.",
    "tool_arguments_not_json": "The arguments of a tool call are not a JSON object.",
    "empty_content": "A message has empty content.",
}
CODES: Mapping[str, Code] = MappingProxyType(
    {
        **{name: Code("error", sentence) for name, sentence in _ERRORS.items()},
        **{name: Code("warning", sentence) for name, sentence in _WARNINGS.items()},
    }
)
