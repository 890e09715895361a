"""A base bundle: tokenizer, template and settings that turn chats into ids, the same for every room."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from luthier_text.config import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextConfig
from luthier_text.encoder import Encoder, Encoding
from luthier_text.errors import Refused, TextError
from luthier_text.guard import ControlTokens, is_control, mark_calls, pick_mark
from luthier_text.labels import IGNORED_LABEL, TrainRow, first_difference, label_tokens
from luthier_text.messages import (
    Message,
    check_tools,
    normalize_messages,
    plain,
    strings,
    template_messages,
    trained_turns,
)
from luthier_text.stream import StreamDecoder, make_stream_decoder
from luthier_text.template import ChatTemplate
from luthier_text.turns import TurnFinder

MASK_MODE = "turn_tracking"
OnOverlength = Literal["error", "truncate", "drop"]


@dataclass(frozen=True)
class _Prepared:
    messages: list[Message]
    tools: list[Any] | None
    text: str
    breaks: list[int]


class TextBundle:
    """Tokenizer and chat template of a base model; frozen, safe to use from several threads.

    Nobody's text becomes a special token, and only the assistant's text may hold other control tokens (`<think>`).
    """

    def __init__(self, tokenizer: bytes, template: bytes, config: TextConfig) -> None:
        self._config = config
        self._encoder = Encoder(tokenizer.decode())
        self._variables: dict[str, Any] = {**config.special_tokens, **config.variables}
        self._template = ChatTemplate(template.decode(), self._variables)
        added, special = self._encoder.added, self._encoder.special | set(config.special_tokens.values())
        special |= set(config.generation_eos)
        control = {token for token in added if is_control(token, token in special, self._template.literals)}
        self._control = ControlTokens(frozenset(control & special), frozenset(control - special))
        self._control_ids = frozenset(added[token] for token in control)
        ends = [*config.generation_eos, *([config.eos_token] if config.eos_token else [])]
        self._eos_ids = frozenset(self._require_id(token) for token in ends)
        self._turns = TurnFinder(self._template, tuple(dict.fromkeys(ends)), frozenset(control))
        self._digests = {
            "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
            "template_sha256": hashlib.sha256(template).hexdigest(),
        }

    @classmethod
    def load(cls, directory: Path) -> "TextBundle":
        """Read a base bundle; raises `TextError` with code `bad_bundle` when it cannot be used."""
        try:
            config = TextConfig.model_validate_json((directory / TEXT_FILE).read_bytes())
            return cls((directory / TOKENIZER_FILE).read_bytes(), (directory / TEMPLATE_FILE).read_bytes(), config)
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise TextError("bad_bundle", f"the base bundle cannot be read: {error}") from error

    @property
    def config(self) -> TextConfig:
        """What `text.json` says."""
        return self._config

    @property
    def context_length(self) -> int:
        """The most tokens that the model can see."""
        return self._config.context_length

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._eos_ids

    @property
    def facts(self) -> dict[str, Any]:
        """What must be equal for ids to be equal; no text of any row."""
        return {
            **self._digests,
            "special_tokens": self._config.special_tokens,
            "generation_eos": list(self._config.generation_eos),
            "context_length": self.context_length,
            "variables": dict(self._config.variables),
            "mask_mode": MASK_MODE,
            "versions": {name: _version(name) for name in ("luthier-text", "tokenizers", "jinja2")},
        }

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that transformers' `apply_chat_template` gives; raises `TextError`."""
        if not messages:
            raise TextError("no_messages", "messages must not be empty")
        ready = template_messages(messages)
        return self._template.render(ready, plain(tools), add_generation_prompt, plain(variables or {}))

    def prompt_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids of a chat up to the place where the assistant begins to speak; raises `TextError`.

        A text of more characters than the longest tokens could say within the context is refused unread.
        """
        prepared = self._prepare(messages, tools, True, self.context_length * self._encoder.longest_token)
        # A control token that must be text takes a look of its own, and more ids than this.
        if prepared.breaks and len(self._encoder.encode(prepared.text).ids) > self.context_length:
            raise self._too_long(prepared.text)
        return self._encode(prepared).ids

    def train_row(
        self, row: Mapping[str, Any], max_length: int | None = None, on_overlength: OnOverlength = "error"
    ) -> TrainRow | Refused:
        """Ids and labels of a chat row; at most `max_length` tokens, and never more than `context_length`.

        A row that is too long is refused: as `row_too_long`, with `drop` as `row_dropped`; `truncate` cuts its end.
        """
        try:
            return self._train_row(row, min(max_length or self.context_length, self.context_length), on_overlength)
        except TextError as error:
            return Refused(error.code, error.message)

    def count(self, row: Mapping[str, Any]) -> int:
        """How many tokens a row has, however long it is; raises `TextError`."""
        return len(self._encode(self._prepare(row.get("messages"), row.get("tools"), False)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text: str = self._encoder.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one generation."""
        return make_stream_decoder(self._encoder, self.decode)

    def golden(self, rows: Iterable[Mapping[str, Any]], k: int = 16) -> list[dict[str, Any]]:
        """The first k rows that can be trained on, with the ids and labels that they must give everywhere."""
        golden: list[dict[str, Any]] = []
        for row in rows:
            if len(golden) >= k:
                break
            made = self.train_row(row)
            if isinstance(made, TrainRow):
                golden.append({"row": dict(row), "input_ids": made.input_ids, "labels": made.labels})
        return golden

    def check_golden(self, golden: Sequence[Mapping[str, Any]]) -> list[str]:
        """How this bundle's ids and labels differ from golden rows; empty when they are equal. Holds no text.

        A golden row with a `max_length` was cut to so many tokens.
        """
        differences = []
        for number, entry in enumerate(golden):
            max_length = entry.get("max_length")
            made = self.train_row(entry["row"], max_length, "error" if max_length is None else "truncate")
            if isinstance(made, Refused):
                differences.append(f"golden row {number}: refused with {made.code}")
                continue
            for name, ours in (("input_ids", made.input_ids), ("labels", made.labels)):
                if ours != entry[name]:
                    differences.append(f"golden row {number}: {name} {first_difference(entry[name], ours)}")
        return differences

    def _train_row(self, row: Mapping[str, Any], max_length: int, on_overlength: OnOverlength) -> TrainRow | Refused:
        if row.get("functions") is not None:
            raise TextError("legacy_functions", "use tools, not functions")
        prepared = self._prepare(row.get("messages"), row.get("tools"), False)
        turns = trained_turns(row["messages"])
        found = self._turns.find(prepared.messages, prepared.tools, prepared.text, turns)
        encoding = self._encode(prepared)
        labels, is_border_inside = label_tokens(encoding, found.spans)
        ids = encoding.ids
        warnings = list(found.warnings)
        if prepared.breaks and self._encoder.encode(prepared.text).ids != ids:
            warnings.append("control_token_in_text")
        if self._encoder.loses_bytes(prepared.text):
            warnings.append("bytes_without_token")
        if is_border_inside:
            warnings.append("turn_border_inside_token")
        if len(ids) > max_length:
            if on_overlength != "truncate":
                code = "row_dropped" if on_overlength == "drop" else "row_too_long"
                return Refused(code, f"the row has {len(ids)} tokens, the most is {max_length}")
            ids, labels = ids[:max_length], labels[:max_length]
            warnings.append("truncated")
        num_trained = sum(label != IGNORED_LABEL for label in labels)
        if not num_trained:
            return Refused("nothing_to_learn", "the row has no token of the assistant to learn")
        return TrainRow(ids, labels, num_trained, tuple(warnings))

    def _prepare(self, messages: object, tools: object, prompt: bool, max_characters: int | None = None) -> _Prepared:
        try:
            return self._prepare_checked(messages, tools, prompt, max_characters)
        except RecursionError as error:
            raise TextError("bad_messages", "messages or tools are nested too deeply") from error

    def _prepare_checked(self, messages: object, tools: object, prompt: bool, max_characters: int | None) -> _Prepared:
        checked = plain(check_tools(tools))
        ready = template_messages(normalize_messages(messages))
        texts = [*strings(ready), *strings(checked)]
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise TextError("lone_surrogate", "a text holds half of a surrogate pair") from error
        rendered = self._template.render(ready, checked, prompt, {})
        if max_characters is not None and len(rendered) > max_characters:
            raise self._too_long(rendered)
        mark = pick_mark([*texts, rendered])
        if checked is not None and self._template.prints(rendered, ready, None, prompt):
            raise TextError("tools_not_rendered", "the chat template does not print the tools")
        self._check_calls(ready, checked, prompt, rendered, mark)
        breaks = self._find_breaks(ready, checked, prompt, rendered, mark)
        return _Prepared(ready, checked, rendered, breaks)

    def _check_calls(
        self, messages: list[Message], tools: list[Any] | None, prompt: bool, rendered: str, mark: str
    ) -> None:
        """Refuse when the template leaves out the tool calls of a message."""
        if not (called := [index for index, message in enumerate(messages) if message.get("tool_calls")]):
            return
        try:
            marked = self._template.render(mark_calls(messages, mark), tools, prompt, {})
        except TextError:
            marked = ""
        printed = set(marked.split(mark)[1::2])
        for index in called:
            # Not every template prints the names: where no mark is seen, the text without the calls tells.
            if str(index) not in printed:
                without = {key: value for key, value in messages[index].items() if key != "tool_calls"}
                others = [*messages[:index], without, *messages[index + 1 :]]
                if self._template.prints(rendered, others, tools, prompt):
                    raise TextError("tool_calls_not_rendered", "the chat template does not print the tool calls")

    def _find_breaks(
        self, messages: list[Message], tools: list[Any] | None, prompt: bool, rendered: str, mark: str
    ) -> list[int]:
        """Places in the rendered text that are inside users' text which looks like a control token."""
        marked_messages = self._control.mark_messages(messages, mark)
        marked_tools = self._control.mark_tools(tools, mark)
        if marked_messages == messages and marked_tools == tools:
            return []
        try:
            marked = self._template.render(marked_messages, marked_tools, prompt, {})
        except TextError as error:
            raise TextError(
                "control_token_in_text", "a text holds a control token that cannot be told apart"
            ) from error
        pieces = marked.split(mark)
        if "".join(pieces) == rendered:
            return list(accumulate(len(piece) for piece in pieces[:-1]))
        # The template looked at what was marked. Equal control ids with and without marks: nothing was forged.
        if self._control_sequence(marked) != self._control_sequence(rendered):
            raise TextError("control_token_in_text", "a text holds a control token that cannot be told apart")
        return []

    def _too_long(self, text: str) -> TextError:
        most = f"This model's maximum context length is {self.context_length} tokens"
        return TextError("context_length_exceeded", f"{most}, the messages have more: {len(text)} characters.")

    def _control_sequence(self, text: str) -> list[int]:
        return [id_ for id_ in self._encoder.encode(text).ids if id_ in self._control_ids]

    def _encode(self, prepared: _Prepared) -> Encoding:
        return self._encoder.encode(prepared.text, prepared.breaks, self._control_ids)

    def _require_id(self, token: str) -> int:
        found = self._encoder.token_id(token)
        if found is None:
            raise TextError("bad_bundle", f"the tokenizer has no token {token!r}")
        return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
