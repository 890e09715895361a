"""Text to ids with exact character offsets, and without control ids where they are forbidden."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from luthier_text.errors import TextError


def byte_characters() -> dict[str, int]:
    """The character by which byte-level tokenizers write each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


@dataclass(frozen=True)
class Encoding:
    """Ids and, for each, the characters that it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Encoder:
    """A tokenizer without truncation, padding or tokens of its own around a text; safe to use from several threads."""

    def __init__(self, source: str) -> None:
        try:
            spec = json.loads(source)
            # The post-processor would add tokens and trim spaces from the offsets.
            spec |= {"truncation": None, "padding": None, "post_processor": None}
            self.tokenizer = Tokenizer.from_str(json.dumps(spec))
            self._without_added = Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
        # tokenizers raises bare Exception for a file that it cannot read.
        except Exception as error:
            raise TextError("bad_bundle", f"the tokenizer cannot be read: {error}") from error
        self.is_byte_level = (spec.get("decoder") or {}).get("type") == "ByteLevel"
        added = self.tokenizer.get_added_tokens_decoder()
        self.added = {token.content: id_ for id_, token in added.items()}
        self.special = frozenset(token.content for token in added.values() if token.special)
        # SentencePiece adds a space at the start of a text, but not inside: there we encode after one of these.
        openers = {text: self.tokenizer.encode(text, add_special_tokens=False).ids for text in ("\n", "a", "0", ".")}
        inside = self.tokenizer.encode("\na", add_special_tokens=False).ids
        self.longest_token = max(map(len, self.tokenizer.get_vocab()), default=1)
        """In characters."""
        self._openers = openers if inside != openers["\n"] + openers["a"] else {}
        self._lost_bytes = self._find_lost_bytes() if self.is_byte_level else b""

    def token_id(self, token: str) -> int | None:
        """The id of a token, added ones included."""
        found: int | None = self.tokenizer.token_to_id(token)
        return found

    def loses_bytes(self, text: str) -> bool:
        """Whether the vocabulary has no token for some byte of the text: tokenizers drop such bytes silently."""
        if not self._lost_bytes:
            return False
        data = text.encode()
        return len(data.translate(None, self._lost_bytes)) != len(data)

    def encode(
        self, text: str, breaks: Sequence[int] = (), control_ids: Collection[int] = (), border: int = 0
    ) -> Encoding:
        """Ids of a text; a control token that would span a place in `breaks`, sorted, is encoded as plain text.

        What stands before `border` has the ids that it has alone.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        waiting = [piece for piece in ((border, len(text), False), (0, border, False)) if piece[0] < piece[1]]
        while waiting:
            start, end, is_plain = waiting.pop()
            if is_plain:
                found = self._encode_plain(text[start:end], start > 0, control_ids)
            else:
                found = self._encode_piece(self.tokenizer, text[start:end], start > 0, ids[-1:])
                inside = [place - start for place in breaks[bisect_right(breaks, start) : bisect_left(breaks, end)]]
                if forged := _forged_spans(text[start:end], found, inside, control_ids):
                    waiting.extend(reversed(_split(start, end, forged)))
                    continue
            ids += found.ids
            offsets += [(left + start, right + start) for left, right in found.offsets]
        return Encoding(ids, offsets)

    def _encode_plain(self, text: str, is_inside: bool, control_ids: Collection[int]) -> Encoding:
        """Ids of a control token's characters, as if it were any other text."""
        found = self._encode_piece(self._without_added, text, is_inside)
        if not set(found.ids).isdisjoint(control_ids):
            half = len(text) // 2
            left = self._encode_piece(self._without_added, text[:half], is_inside)
            right = self._encode_piece(self._without_added, text[half:], True)
            moved = [(start + half, end + half) for start, end in right.offsets]
            found = Encoding(left.ids + right.ids, left.offsets + moved)
        if not set(found.ids).isdisjoint(control_ids):
            raise TextError("control_token_in_text", "the tokenizer makes a control token out of plain text")
        return found

    def _encode_piece(self, tokenizer: Tokenizer, text: str, is_inside: bool, before: Sequence[int] = ()) -> Encoding:
        """Ids of a part of a text; `before` is the id that the part follows, where that may be an added token."""
        for opener, opener_ids in self._openers_after(before) if is_inside and self._openers else ():
            found = tokenizer.encode(opener + text, add_special_tokens=False)
            skip, width = len(opener_ids), len(opener)
            if found.ids[:skip] == opener_ids and found.offsets[skip - 1][1] <= width:
                return Encoding(found.ids[skip:], [(max(s - width, 0), e - width) for s, e in found.offsets[skip:]])
        found = tokenizer.encode(text, add_special_tokens=False)
        return Encoding(found.ids, found.offsets)

    def _openers_after(self, before: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Older SentencePiece tokenizers add their space behind added tokens too: such a one is the best opener."""
        added = [(token, [id_]) for id_ in before if (token := self.tokenizer.id_to_token(id_)) in self.added]
        return [*added, *self._openers.items()]

    def _find_lost_bytes(self) -> bytes:
        return bytes(byte for char, byte in byte_characters().items() if self.tokenizer.token_to_id(char) is None)


def _forged_spans(
    text: str, found: Encoding, breaks: Sequence[int], control_ids: Collection[int]
) -> list[tuple[int, int]]:
    if not breaks:
        return []
    spans = []
    for id_, (first, last) in zip(found.ids, found.offsets, strict=True):
        if id_ not in control_ids:
            continue
        # Added tokens may swallow the spaces around them.
        start, end = last - len(text[first:last].lstrip()), first + len(text[first:last].rstrip())
        following = bisect_right(breaks, start)
        if following < len(breaks) and breaks[following] < end:
            spans.append((start, end))
    return spans


def _split(start: int, end: int, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, bool]]:
    pieces = []
    position = start
    for left, right in spans:
        pieces += [(position, start + left, False), (start + left, start + right, True)]
        position = start + right
    pieces.append((position, end, False))
    return [piece for piece in pieces if piece[0] < piece[1]]
