"""The usual row, accepted at full speed. This never judges: what it does not accept goes to `parse` and `chat`.

msgspec itself is strict about UTF-8, surrogates, control characters and NaN. It does not see duplicate keys: those
show in the number of colons, which a row of known shape determines exactly: one for each key, and those in its texts.
"""

from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1)]
_NOT_PLAIN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_KEYS_PER_EXAMPLE, _KEYS_PER_MESSAGE = 1, 2


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class _Example(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]


class _NamedMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: Text | msgspec.UnsetType = msgspec.UNSET
    weight: Literal[0, 1] | msgspec.UnsetType = msgspec.UNSET


class _NamedExample(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    messages: Annotated[list[_NamedMessage], msgspec.Meta(min_length=1)]


_decode = msgspec.json.Decoder(_Example).decode
_decode_named = msgspec.json.Decoder(_NamedExample).decode


def accept(line: bytes) -> tuple[str, ...] | None:
    """The roles of a row that is certainly fine and gives no warning, otherwise None."""
    try:
        messages = _decode(line).messages
    except _NOT_PLAIN:
        return _accept_named(line)
    if messages[-1].role != "assistant":
        return None
    texts = [message.content for message in messages]
    if not _has_only(line, texts, _KEYS_PER_EXAMPLE + _KEYS_PER_MESSAGE * len(texts)):
        return None
    return tuple([message.role for message in messages])


def _accept_named(line: bytes) -> tuple[str, ...] | None:
    """The same for rows whose messages carry names or weights."""
    try:
        messages = _decode_named(line).messages
    except _NOT_PLAIN:
        return None
    replies = [message for message in messages if message.role == "assistant"]
    num_weights = sum(reply.weight is not msgspec.UNSET for reply in replies)
    if messages[-1].role != "assistant" or all(reply.weight == 0 for reply in replies):
        return None
    if num_weights != sum(message.weight is not msgspec.UNSET for message in messages):
        return None
    texts = [message.content for message in messages]
    names = [message.name for message in messages if message.name is not msgspec.UNSET]
    num_keys = _KEYS_PER_EXAMPLE + _KEYS_PER_MESSAGE * len(messages) + len(names) + num_weights
    return tuple([message.role for message in messages]) if _has_only(line, texts + names, num_keys) else None


def _has_only(line: bytes, texts: list[str], num_keys: int) -> bool:
    """Whether the line has this many keys beside these texts, and no NUL in them.

    A duplicate key adds a colon that no text of the result explains. Only a colon that is written as an escape could
    make up for one: where a text has a colon, such an escape is looked for.
    """
    text = "".join(texts)
    if "\0" in text:
        return False
    # Looking for one character is many times faster than counting it.
    num_colons = text.count(":") if ":" in text else 0
    if line.count(b":") != num_keys + num_colons:
        return False
    return not num_colons or (b"\\u003a" not in line and b"\\u003A" not in line)
