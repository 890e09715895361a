"""A base bundle: tokenizer, template and settings that turn chats into ids, the same for every room."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from luthier_text.chats import ChatReader, told_depth, too_long
from luthier_text.config import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextConfig
from luthier_text.encoder import Encoder, Encoding
from luthier_text.errors import Refused, TextError
from luthier_text.guard import ControlTokens, is_control
from luthier_text.labels import IGNORED_LABEL, TrainRow, first_difference, label_tokens
from luthier_text.messages import plain, template_messages
from luthier_text.rows import RowReader, ServedRow
from luthier_text.stream import StreamDecoder, make_stream_decoder
from luthier_text.template import ChatTemplate
from luthier_text.turns import TurnFinder

MASK_MODE = "turn_tracking/2"
"""How rows become ids and labels; another number where the same row may give others."""
OnOverlength = Literal["error", "truncate", "drop"]


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
        guard = ControlTokens(frozenset(control & special), frozenset(control - special))
        self._control_ids = frozenset(added[token] for token in control)
        ends = [*config.generation_eos, *([config.eos_token] if config.eos_token else [])]
        self._eos_ids = frozenset(self._require_id(token) for token in ends)
        turns = TurnFinder(self._template, tuple(dict.fromkeys(ends)), frozenset(control))
        self._chats = ChatReader(self._template, self._encoder, guard, self._control_ids)
        self._rows = RowReader(self._template, self._chats, turns)
        self._digests = {
            "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
            "template_sha256": hashlib.sha256(template).hexdigest(),
        }

    @classmethod
    def load(cls, directory: Path) -> "TextBundle":
        """Read a base bundle; raises `TextError` with code `bad_bundle` when it cannot be used.

        A disk that does not give what is there raises `OSError`: that says nothing about the bundle.
        """
        try:
            config = TextConfig.model_validate_json((directory / TEXT_FILE).read_bytes())
            return cls((directory / TOKENIZER_FILE).read_bytes(), (directory / TEMPLATE_FILE).read_bytes(), config)
        except (FileNotFoundError, ValidationError, UnicodeDecodeError) as error:
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

    def control_token(self, id_: int) -> str | None:
        """The control token that has this id, if it is one."""
        return self._encoder.tokenizer.id_to_token(id_) if id_ in self._control_ids else None

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
        with told_depth():
            chat = self._chats.render(*self._chats.read(messages, tools), True, self.context_length)
            # A control token that must be text takes a look of its own, and more ids than this.
            if chat.breaks and len(self._encoder.encode(chat.text).ids) > self.context_length:
                raise too_long(self.context_length, chat.text)
            self._chats.check_printed(chat)
            return self._encoder.encode(chat.text, chat.breaks, self._control_ids).ids

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
        with told_depth():
            return len(self._encode(self._rows.read(row, is_learnt=False)).ids)

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
        with told_depth():
            served = self._rows.read(row)
        encoding = self._encode(served)
        labels, is_border_inside = label_tokens(encoding, served.spans)
        ids = encoding.ids
        warnings = list(served.warnings)
        if served.breaks and self._encoder.encode(served.text, border=served.prompt_length).ids != ids:
            warnings.append("control_token_in_text")
        if self._encoder.loses_bytes(served.text):
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

    def _encode(self, row: ServedRow) -> Encoding:
        return self._encoder.encode(row.text, row.breaks, self._control_ids, row.prompt_length)

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
