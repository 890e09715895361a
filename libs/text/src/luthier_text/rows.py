"""A training row as it is served: the prompt of its last trained turn, and behind it that turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier_text.chats import Chat, ChatReader
from luthier_text.errors import TextError
from luthier_text.guard import not_rendered
from luthier_text.messages import reasoning_of, trained_turns
from luthier_text.template import ChatTemplate
from luthier_text.turns import TrainedSpans, TurnFinder


@dataclass(frozen=True)
class ServedRow:
    """A text, where its prompt ends, the places in it where no control token may come out, and what is learnt of it."""

    text: str
    prompt_length: int
    breaks: list[int]
    spans: list[tuple[int, int]]
    warnings: list[str]


class RowReader:
    """Makes rows into text; raises `TextError` for a row whose reply is not printed behind the prompt it is served."""

    def __init__(self, template: ChatTemplate, chats: ChatReader, turns: TurnFinder) -> None:
        self._template = template
        self._chats = chats
        self._turns = turns

    def read(self, row: Mapping[str, Any], is_learnt: bool = True) -> ServedRow:
        """A row to train on; of one that is only counted it is not said what is learnt."""
        messages, tools = self._chats.read(row.get("messages"), row.get("tools"))
        turns = trained_turns(row["messages"])
        chat = self._chats.render(messages, tools, False)
        last = turns[-1] if turns else 0
        if turns and last + 1 < len(messages):
            # Nothing is learnt from what follows, and it may change how the turn is printed.
            chat = self._chats.render(messages[: last + 1], tools, False)
        prompt = self._template.render(messages[:last], tools, True, {}) if last else ""
        if not chat.text.startswith(prompt):
            served = self._join(chat, turns)
        elif is_learnt:
            found = self._turns.find(chat, turns, len(prompt) or None)
            _check_printed(found)
            served = ServedRow(chat.text, len(prompt), chat.breaks, found.spans, found.warnings)
        else:
            served = ServedRow(chat.text, len(prompt), chat.breaks, [], [])
        if served.spans:
            start, end = served.spans[-1]
            if reasoning_of(messages[last]) not in served.text[start:end]:
                served.warnings.append("reasoning_not_rendered")
        return served

    def _join(self, chat: Chat, turns: list[int]) -> ServedRow:
        """Prompt and reply, where the template prints what comes before a reply in another way once the reply is there.

        Some print the system message in the last message of the user, and only if nothing follows that.
        """
        *earlier, last = turns
        prompt = self._chats.render(chat.messages[:last], chat.tools, True)
        before, reply = self._turns.find(prompt, earlier), self._turns.find(chat, [last])
        _check_printed(before)
        [(start, end)] = reply.spans
        header = self._turns.header
        if not (chat.text.endswith(header, 0, start) and prompt.text.endswith(header)):
            raise TextError(
                "prompt_differs", f"the chat template prints other text before messages[{last}] than a prompt ends in"
            )
        shift = len(prompt.text) - start
        return ServedRow(
            text=prompt.text + chat.text[start:],
            prompt_length=len(prompt.text),
            breaks=[*prompt.breaks, *(place + shift for place in chat.breaks if place > start)],
            spans=[*before.spans, (start + shift, end + shift)],
            warnings=list(dict.fromkeys([*before.warnings, *reply.warnings])),
        )


def _check_printed(found: TrainedSpans) -> None:
    if found.unprinted is not None:
        raise not_rendered(found.unprinted)
