"""Which texts of a chat could become control tokens, and marks that tell users' text from the template's; pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from luthier_text.errors import TextError
from luthier_text.messages import TRAINED_ROLE, Message

# Plane 16 is for private use: hardly any text holds one of these characters, and none that is meant holds all.
_PRIVATE = range(0x100000, 0x10FFFE)
# Added tokens of this shape are control tokens even where the tokenizer does not call them special and the template
# builds them from pieces.
_CONTROL_SHAPE = re.compile(r"<[|｜].*[|｜]>")


def pick_mark(texts: Sequence[str], skip: str = "") -> str:
    """A private character that occurs in none of the texts; raises `TextError` when they hold all of them."""
    # To look for one character is many times faster than to collect all of them, and the first will nearly always do.
    for mark in map(chr, _PRIVATE[:2]):
        if mark != skip and not any(mark in text for text in texts):
            return mark
    used = set(skip).union(*texts)
    for mark in map(chr, _PRIVATE):
        if mark not in used:
            return mark
    raise TextError("bad_messages", "the texts hold every character that is for private use")


def is_control(content: str, special: bool, template_literals: str) -> bool:
    """Whether an added token must never come out of a user's text."""
    if len(content) < 2 or content.isspace():
        return False
    return special or content in template_literals or _CONTROL_SHAPE.fullmatch(content) is not None


@dataclass(frozen=True)
class ControlTokens:
    """Control tokens of a bundle: `special` in nobody's text, the rest (`<think>`) in the assistant's text only."""

    special: frozenset[str]
    other: frozenset[str]
    _patterns: dict[bool, "_Patterns"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        patterns = {True: _Patterns(self.special), False: _Patterns(self.special | self.other)}
        object.__setattr__(self, "_patterns", patterns)

    def mark_messages(self, messages: Sequence[Message], mark: str) -> list[Message]:
        """The messages with `mark` inside each text that is, or could join to, a control token."""
        return [
            {
                key: value if key == "role" else self._mark(value, mark, message.get("role") == TRAINED_ROLE)
                for key, value in message.items()
            }
            for message in messages
        ]

    def mark_tools(self, tools: list[Any] | None, mark: str) -> list[Any] | None:
        """The same for tools, their keys too."""
        return None if tools is None else [self._mark(tool, mark, False) for tool in tools]

    def _mark(self, value: Any, mark: str, trusted: bool) -> Any:
        if isinstance(value, str):
            return self._patterns[trusted].mark(value, mark)
        if isinstance(value, Mapping):
            return {self._mark(key, mark, trusted): self._mark(item, mark, trusted) for key, item in value.items()}
        if isinstance(value, list):
            return [self._mark(item, mark, trusted) for item in value]
        return value


class _Patterns:
    def __init__(self, tokens: frozenset[str]) -> None:
        # A look-ahead, so that tokens that overlap are all found.
        longest_first = sorted(tokens, key=lambda token: (-len(token), token))
        self._whole = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))" if tokens else "(?!)")
        self._heads = frozenset(token[:size] for token in tokens for size in range(1, len(token)))
        self._tails = frozenset(token[-size:] for token in tokens for size in range(1, len(token)))
        # Most texts hold no character that a token begins with: a look at single characters is enough for them.
        self._firsts = frozenset(token[0] for token in tokens)
        self._head_ends = frozenset(head[-1] for head in self._heads)
        self._tail_starts = frozenset(tail[0] for tail in self._tails)
        self._longest = max(map(len, tokens), default=0)

    def mark(self, text: str, mark: str) -> str:
        may_hold = any(first in text for first in self._firsts)
        places = {found.start() + 1 for found in self._whole.finditer(text)} if may_hold else set()
        end = len(text.rstrip())
        start = len(text) - len(text.lstrip())
        sizes = range(1, min(self._longest, end - start + 1))
        if text[end - 1 : end] in self._head_ends and any(text[end - size : end] in self._heads for size in sizes):
            places.add(end)
        if text[start : start + 1] in self._tail_starts and any(
            text[start : start + size] in self._tails for size in sizes
        ):
            places.add(start)
        return mark.join(text[left:right] for left, right in pairwise([0, *sorted(places), len(text)]))


def mark_calls(messages: Sequence[Message], mark: str) -> list[Message]:
    """The messages with their number, between two marks, behind the names of the functions that they call."""
    return [
        {**message, "tool_calls": [_mark_call(call, f"{mark}{index}{mark}") for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for index, message in enumerate(messages)
    ]


def _mark_call(call: Message, end: str) -> Message:
    return {**call, "function": {**call["function"], "name": call["function"]["name"] + end}}


def mark_middles(messages: Sequence[Message], mark: str) -> list[Message]:
    """The messages with their number, between two marks, in the middle of the text of everyone but the assistant."""
    return [
        {**message, "content": _mark_middle(message["content"], f"{mark}{index}{mark}")}
        if _is_others_text(message)
        else message
        for index, message in enumerate(messages)
    ]


def _mark_middle(content: str, label: str) -> str:
    middle = len(content) - len(content.lstrip()) + (len(content.strip()) + 1) // 2
    return content[:middle] + label + content[middle:]


def without_labels(marked: str, mark: str) -> str:
    """A text without the marks and what stands between them."""
    return "".join(marked.split(mark)[::2])


def find_unprinted(messages: Sequence[Message], marked: str, mark: str) -> int | None:
    """The first message that `mark_middles` marked and that is not in the text, if there is one."""
    printed = set(marked.split(mark)[1::2])
    return next(
        (index for index, message in enumerate(messages) if _is_others_text(message) and str(index) not in printed),
        None,
    )


def _is_others_text(message: Message) -> bool:
    content = message.get("content")
    return message.get("role") != TRAINED_ROLE and isinstance(content, str) and bool(content.strip())


def not_rendered(index: int) -> TextError:
    """What is said of a message that the template leaves out."""
    return TextError("message_not_rendered", f"the chat template does not print messages[{index}]")
