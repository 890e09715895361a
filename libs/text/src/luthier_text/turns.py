"""Where the assistant's turns stand in a rendered chat, without what the engine supplies before them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from luthier_text.errors import TextError
from luthier_text.guard import mark_middles, pick_mark
from luthier_text.messages import TRAINED_ROLE, Message, strings
from luthier_text.template import ChatTemplate, Tracked

_PROBES: tuple[list[Message], ...] = (
    [{"role": "user", "content": "x"}],
    [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}],
)


@dataclass(frozen=True)
class TrainedSpans:
    """Character ranges that are learnt, in order, and warnings as stable codes."""

    spans: list[tuple[int, int]]
    warnings: list[str]


class TurnFinder:
    """Finds what is learnt; refuses (`TextError`) where it cannot be sure."""

    def __init__(self, template: ChatTemplate, ends: tuple[str, ...], control: Collection[str]) -> None:
        self._template = template
        self._ends = tuple(end for end in ends if end)
        headers = [re.escape(token) for token in sorted(control, key=lambda token: (-len(token), token))]
        self._border = re.compile("|".join([*headers, r"<\w+>"]))
        self._headers = self._find_headers()

    def find(self, messages: list[Message], tools: list[Any] | None, text: str, turns: Sequence[int]) -> TrainedSpans:
        """The spans of the given turns in `text`, each with its end-of-turn token."""
        mark = pick_mark([text, *strings(messages), *strings(tools)])
        tracked = self._template.render_tracked(messages, tools, False, mark)
        if tracked.text != text:
            raise TextError("turn_not_tracked", "the chat template prints another text when turns are tracked")
        self._check_others(messages, tools, tracked, turns)
        spans: list[tuple[int, int]] = []
        warnings: list[str] = []
        for index in turns:
            span = self._find_span(tracked, index)
            spans.append(span)
            words = text[span[0] : span[1]]
            if not words.endswith(self._ends):
                warnings.append("turn_without_end_token")
            if str(messages[index].get("content") or "").strip() not in words:
                warnings.append("assistant_text_changed")
        return TrainedSpans(sorted(spans), list(dict.fromkeys(warnings)))

    def _find_span(self, tracked: Tracked, index: int) -> tuple[int, int]:
        found = tracked.turn(index)
        if len(found) != 1:
            raise TextError("turn_not_tracked", f"messages[{index}] is not printed in one place")
        start, end = found[0]
        text = tracked.text
        header = next((header for header in self._headers if text.startswith(header, start, end)), None)
        if header is None:
            raise TextError("turn_not_tracked", f"messages[{index}] does not begin as a generation begins")
        start += len(header)
        end = start + len(text[start:end].rstrip())
        if not text[start:end].endswith(self._ends):
            end = self._find_end_after(tracked, end)
        return start, end

    def _find_end_after(self, tracked: Tracked, end: int) -> int:
        """Some templates print the end token after the loop, which is nobody's turn."""
        rest = end + len(tracked.text[end:]) - len(tracked.text[end:].lstrip())
        for token in self._ends:
            is_nobodys = any(owner is None and left <= rest < right for owner, left, right in tracked.pieces)
            if is_nobodys and tracked.text.startswith(token, rest):
                return rest + len(token)
        return end

    def _check_others(
        self, messages: list[Message], tools: list[Any] | None, tracked: Tracked, turns: Sequence[int]
    ) -> None:
        """Refuse when a turn of the assistant holds text of somebody else."""
        mark = pick_mark([tracked.text, *strings(messages), *strings(tools)])
        inner = pick_mark([tracked.text, *strings(messages), *strings(tools)], skip=mark)
        try:
            marked = self._template.render_tracked(mark_middles(messages, inner), tools, False, mark)
        except TextError:
            marked = Tracked("", ())
        if marked.text.replace(inner, "") != tracked.text:
            # The template looked at the marked text: settle for everybody having a turn of their own.
            for index, message in enumerate(messages):
                is_other = message["role"] not in (TRAINED_ROLE, "system", "developer")
                if is_other and str(message.get("content") or "").strip() and not tracked.turn(index):
                    raise TextError("turn_mixes_roles", f"messages[{index}] has no turn of its own")
            return
        for index in turns:
            if any(inner in marked.text[start:end] for start, end in marked.turn(index)):
                raise TextError("turn_mixes_roles", f"the turn of messages[{index}] holds text of another role")

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
