"""Chats made ready for tokens: checked, rendered, and with the places known where no control token may come out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from luthier_text.encoder import Encoder
from luthier_text.errors import TextError
from luthier_text.guard import (
    ControlTokens,
    find_unprinted,
    mark_calls,
    mark_middles,
    not_rendered,
    pick_mark,
    without_labels,
)
from luthier_text.messages import Message, check_tools, normalize_messages, plain, strings, template_messages
from luthier_text.template import ChatTemplate


@dataclass(frozen=True)
class Chat:
    """What a template is given and the text that it prints.

    `texts` are all that a mark must not be in; `breaks` are the places in the text that are inside users' text which
    looks like a control token.
    """

    messages: list[Message]
    tools: list[Any] | None
    is_prompt: bool
    text: str
    texts: list[str]
    breaks: list[int]


@contextmanager
def told_depth() -> Iterator[None]:
    """Messages and tools are walked by recursion."""
    try:
        yield
    except RecursionError as error:
        raise TextError("bad_messages", "messages or tools are nested too deeply") from error


class ChatReader:
    """Reads chats and renders them; raises `TextError` for what cannot be rendered whole."""

    def __init__(
        self, template: ChatTemplate, encoder: Encoder, control: ControlTokens, control_ids: frozenset[int]
    ) -> None:
        self._template = template
        self._encoder = encoder
        self._control = control
        self._control_ids = control_ids
        # OpenAI's newer name for what most templates know as system.
        is_unknown = self._prints("system") and not self._prints("developer")
        self._roles = {"developer": "system"} if is_unknown else {}

    def read(self, messages: object, tools: object) -> tuple[list[Message], list[Any] | None]:
        """Messages and tools as the template gets them."""
        checked = plain(check_tools(tools))
        return template_messages(normalize_messages(messages, self._roles)), checked

    def render(
        self, messages: list[Message], tools: list[Any] | None, is_prompt: bool, context_length: int | None = None
    ) -> Chat:
        """What was read as text. With `context_length`, more characters than its longest tokens could say are refused
        unread."""
        texts = [*strings(messages), *strings(tools)]
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise TextError("lone_surrogate", "a text holds half of a surrogate pair") from error
        rendered = self._template.render(messages, tools, is_prompt, {})
        if context_length is not None and len(rendered) > context_length * self._encoder.longest_token:
            raise too_long(context_length, rendered)
        chat = Chat(messages, tools, is_prompt, rendered, [rendered, *texts], [])
        mark = pick_mark(chat.texts)
        if tools is not None and self._template.prints(rendered, messages, None, is_prompt):
            raise TextError("tools_not_rendered", "the chat template does not print the tools")
        self._check_calls(chat, mark)
        return replace(chat, breaks=self._find_breaks(chat, mark))

    def check_printed(self, chat: Chat) -> None:
        """Refuse when the template leaves out a message of somebody else than the assistant."""
        mark = pick_mark(chat.texts)
        try:
            marked = self._template.render(mark_middles(chat.messages, mark), chat.tools, chat.is_prompt, {})
        except TextError:
            return
        # Another text: the template looked at what was marked, and nothing can be told.
        if without_labels(marked, mark) == chat.text:
            unprinted = find_unprinted(chat.messages, marked, mark)
            if unprinted is not None:
                raise not_rendered(unprinted)

    def _check_calls(self, chat: Chat, mark: str) -> None:
        """Refuse when the template leaves out the tool calls of a message."""
        messages = chat.messages
        if not (called := [index for index, message in enumerate(messages) if message.get("tool_calls")]):
            return
        try:
            marked = self._template.render(mark_calls(messages, mark), chat.tools, chat.is_prompt, {})
        except TextError:
            marked = ""
        printed = set(marked.split(mark)[1::2])
        for index in called:
            # Not every template prints the names: where no mark is seen, the text without the calls tells.
            if str(index) not in printed:
                without = {key: value for key, value in messages[index].items() if key != "tool_calls"}
                others = [*messages[:index], without, *messages[index + 1 :]]
                if self._template.prints(chat.text, others, chat.tools, chat.is_prompt):
                    raise TextError("tool_calls_not_rendered", "the chat template does not print the tool calls")

    def _find_breaks(self, chat: Chat, mark: str) -> list[int]:
        """Places in the rendered text that are inside users' text which looks like a control token."""
        marked_messages = self._control.mark_messages(chat.messages, mark)
        marked_tools = self._control.mark_tools(chat.tools, mark)
        if marked_messages == chat.messages and marked_tools == chat.tools:
            return []
        try:
            marked = self._template.render(marked_messages, marked_tools, chat.is_prompt, {})
        except TextError as error:
            raise TextError(
                "control_token_in_text", "a text holds a control token that cannot be told apart"
            ) from error
        pieces = marked.split(mark)
        if "".join(pieces) == chat.text:
            return list(accumulate(len(piece) for piece in pieces[:-1]))
        # The template looked at what was marked. Equal control ids with and without marks: nothing was forged.
        if self._control_sequence(marked) != self._control_sequence(chat.text):
            raise TextError("control_token_in_text", "a text holds a control token that cannot be told apart")
        return []

    def _control_sequence(self, text: str) -> list[int]:
        return [id_ for id_ in self._encoder.encode(text).ids if id_ in self._control_ids]

    def _prints(self, role: str) -> bool:
        mark = pick_mark([])
        messages = [{"role": role, "content": mark}, {"role": "user", "content": "x"}]
        try:
            return mark in self._template.render(messages, None, True, {})
        except TextError:
            return False


def too_long(context_length: int, text: str) -> TextError:
    """What is said of a chat that does not fit."""
    most = f"This model's maximum context length is {context_length} tokens"
    return TextError("context_length_exceeded", f"{most}, the messages have more: {len(text)} characters.")
