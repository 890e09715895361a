"""Where the assistant's turns stand in a rendered chat, without what the engine supplies before them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from luthier_text.chats import Chat
from luthier_text.errors import TextError
from luthier_text.guard import find_unprinted, mark_middles, pick_mark, without_labels
from luthier_text.messages import TRAINED_ROLE, Message
from luthier_text.template import ChatTemplate, Tracked

_PROBES: tuple[list[Message], ...] = (
    [{"role": "user", "content": "x"}],
    [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}],
)


@dataclass(frozen=True)
class TrainedSpans:
    """Character ranges that are learnt, in order, and warnings as stable codes.

    `unprinted` is a message of somebody else than the assistant that the template leaves out.
    """

    spans: list[tuple[int, int]]
    warnings: list[str]
    unprinted: int | None


class TurnFinder:
    """Finds what is learnt; refuses (`TextError`) where it cannot be sure."""

    def __init__(self, template: ChatTemplate, ends: tuple[str, ...], control: Collection[str]) -> None:
        self._template = template
        self._ends = tuple(end for end in ends if end)
        headers = [re.escape(token) for token in sorted(control, key=lambda token: (-len(token), token))]
        self._border = re.compile("|".join([*headers, r"<\w+>"]))
        self._headers = self._find_headers()

    @property
    def header(self) -> str:
        """What a prompt ends in, behind the last message."""
        return self._headers[0] if self._headers else ""

    def find(self, chat: Chat, turns: Sequence[int], prompt_length: int | None = None) -> TrainedSpans:
        """The spans of the given turns, each with its end-of-turn token; the last begins where its prompt ends."""
        mark = pick_mark(chat.texts)
        tracked = self._template.render_tracked(chat.messages, chat.tools, chat.is_prompt, mark)
        if tracked.text != chat.text:
            raise TextError("turn_not_tracked", "the chat template prints another text when turns are tracked")
        unprinted = self._check_others(chat, tracked, turns, mark)
        spans: list[tuple[int, int]] = []
        warnings: list[str] = []
        for index in turns:
            span = self._find_span(tracked, index, prompt_length if index == turns[-1] else None)
            spans.append(span)
            words = chat.text[span[0] : span[1]]
            if not words.endswith(self._ends):
                warnings.append("turn_without_end_token")
            if str(chat.messages[index].get("content") or "").strip() not in words:
                warnings.append("assistant_text_changed")
        return TrainedSpans(sorted(spans), list(dict.fromkeys(warnings)), unprinted)

    def _find_span(self, tracked: Tracked, index: int, prompt_length: int | None) -> tuple[int, int]:
        found = tracked.turn(index)
        if len(found) != 1:
            raise TextError("turn_not_tracked", f"messages[{index}] is not printed in one place")
        left, end = found[0]
        start = self._skip_header(tracked.text, index, left, end) if prompt_length is None else prompt_length
        if not left <= start <= end:
            raise TextError("turn_not_tracked", f"messages[{index}] does not begin where its prompt ends")
        end = start + len(tracked.text[start:end].rstrip())
        if not tracked.text[start:end].endswith(self._ends):
            end = self._find_end_after(tracked, end)
        return start, end

    def _skip_header(self, text: str, index: int, start: int, end: int) -> int:
        header = next((header for header in self._headers if text.startswith(header, start, end)), None)
        if header is None:
            raise TextError("turn_not_tracked", f"messages[{index}] does not begin as a generation begins")
        return start + len(header)

    def _find_end_after(self, tracked: Tracked, end: int) -> int:
        """Some templates print the end token after the loop, which is nobody's turn."""
        rest = end + len(tracked.text[end:]) - len(tracked.text[end:].lstrip())
        for token in self._ends:
            is_nobodys = any(owner is None and left <= rest < right for owner, left, right in tracked.pieces)
            if is_nobodys and tracked.text.startswith(token, rest):
                return rest + len(token)
        return end

    def _check_others(self, chat: Chat, tracked: Tracked, turns: Sequence[int], mark: str) -> int | None:
        """Refuse when a turn of the assistant holds text of somebody else; which message is not printed at all."""
        inner = pick_mark(chat.texts, skip=mark)
        try:
            marked = self._template.render_tracked(mark_middles(chat.messages, inner), chat.tools, chat.is_prompt, mark)
        except TextError:
            marked = Tracked("", ())
        if without_labels(marked.text, inner) != chat.text:
            # The template looked at the marked text: settle for everybody having a turn of their own.
            for index, message in enumerate(chat.messages):
                is_other = message["role"] not in (TRAINED_ROLE, "system", "developer")
                if is_other and str(message.get("content") or "").strip() and not tracked.turn(index):
                    raise TextError("turn_mixes_roles", f"messages[{index}] has no turn of its own")
            return None
        for index in turns:
            if any(inner in marked.text[start:end] for start, end in marked.turn(index)):
                raise TextError("turn_mixes_roles", f"the turn of messages[{index}] holds text of another role")
        return find_unprinted(chat.messages, marked.text, inner)

    def _find_headers(self) -> list[str]:
        """What the engine supplies before a reply, the longest first: a past turn may have only the start of it."""
        for probe in _PROBES:
            try:
                prompt = self._tail(probe, True)
                without = self._tail(probe, False)
            except TextError:
                continue
            whole = prompt.removeprefix(without)
            cuts = [found.start() for found in self._border.finditer(whole) if found.start() > 0]
            shorter = [whole[:cut] for cut in reversed(cuts) if whole[:cut].strip()]
            return list(dict.fromkeys([whole, *shorter]))
        return []

    def _tail(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """What a render prints after the last turn."""
        tracked = self._template.render_tracked(messages, None, add_generation_prompt, pick_mark([]))
        last = max((end for owner, _, end in tracked.pieces if owner is not None), default=0)
        return tracked.text[last:] if last else ""
