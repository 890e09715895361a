"""Ids to text while they arrive: complete characters only, and every space."""

import codecs
from collections.abc import Callable, Iterable
from typing import Protocol

from luthier_text.encoder import Encoder, byte_characters

_REPLACEMENT = "\ufffd"
# A character is at most four bytes: a run of this many tokens that still ends inside one is broken text.
_MAX_HELD_TOKENS = 16


class StreamDecoder(Protocol):
    """Give it ids as they come; all that it returned, joined, is the text of all ids. Not for several threads."""

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        ...

    def flush(self) -> str:
        """What is left, when no more ids come."""
        ...


def make_stream_decoder(encoder: Encoder, decode: Callable[[list[int]], str]) -> StreamDecoder:
    """The decoder that fits the tokenizer."""
    return _ByteStream(encoder) if encoder.is_byte_level else _WindowStream(decode)


class _ByteStream:
    """Byte-level tokens are bytes: joining them is exact."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._bytes = byte_characters()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._utf8.decode(self._to_bytes(id_)) for id_ in ids)

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text

    def _to_bytes(self, id_: int) -> bytes:
        token: str | None = self._encoder.tokenizer.id_to_token(id_)
        if token is None or token in self._encoder.special:
            return b""
        found = [self._bytes.get(char) for char in token]
        return token.encode() if None in found else bytes(byte for byte in found if byte is not None)


class _WindowStream:
    """For decoders that look at neighbours: decode a short window and hold back what may still change."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._shown: list[int] = []
        self._held: list[int] = []

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._feed_one(id_) for id_ in ids)

    def flush(self) -> str:
        text = self._decode(self._shown + self._held)[len(self._decode(self._shown)) :]
        self._shown, self._held = [], []
        return text

    def _feed_one(self, id_: int) -> str:
        self._held.append(id_)
        text = self._decode(self._shown + self._held)
        before = self._decode(self._shown)
        if len(text) <= len(before) or (text.endswith(_REPLACEMENT) and len(self._held) < _MAX_HELD_TOKENS):
            return ""
        self._shown, self._held = self._held, []
        return text[len(before) :]
