"""Multipart bodies read as they arrive: small text fields are kept, file parts are handed on piece by piece."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from typing import Any

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from luthier_api.errors import ApiError, ErrorCode

MAX_TEXT_BYTES = 4096
MAX_PARTS = 16
DRAIN_BYTES = 32 * 1024 * 1024
"""So much of a refused body is still read: a client that is cut off while sending does not read the answer."""
DRAIN_S = 30.0

_Event = Any
"""A part's head (MultipartSegment), a piece of its body (bytes), or its end (None)."""


@dataclass(frozen=True)
class FilePart:
    """A part with a filename. Its chunks must be read to the end before the next part."""

    name: str
    filename: str
    chunks: AsyncIterator[bytes]


class Upload:
    """One multipart body. The parts' own content types mean nothing, and so does their order."""

    def __init__(
        self, content_type: str, body: AsyncIterator[bytes], turn: AbstractAsyncContextManager[object]
    ) -> None:
        """`turn` is waited for before the body is looked at, and held while its files are read."""
        self.fields: dict[str, str] = {}
        self._body = body
        self._content_type = content_type
        self._turn = turn

    async def files(self) -> AsyncGenerator[FilePart, None]:
        """The file parts, in the order of the body. `fields` holds the text parts seen so far."""
        async with self._turn, aclosing(self._events()) as events:
            async for event in events:
                assert isinstance(event, MultipartSegment), "a part was not read to its end"
                if event.filename is not None:
                    yield FilePart(event.name, event.filename, self._chunks(events))
                else:
                    await self._keep(event.name, events)

    async def drain(self) -> None:
        """Read on, in bounds, what a refused request is still sending."""
        num_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                async for chunk in self._body:
                    num_bytes += len(chunk)
                    if num_bytes > DRAIN_BYTES:
                        return

    async def _events(self) -> AsyncGenerator[_Event, None]:
        kind, options = parse_options_header(self._content_type)
        if kind != "multipart/form-data" or not options.get("boundary"):
            message = "The body must be multipart/form-data with a boundary."
            raise ApiError(ErrorCode.INVALID_MULTIPART, message)
        try:
            parser = PushMultipartParser(options["boundary"], max_segment_count=MAX_PARTS)
            async for chunk in self._body:
                for event in parser.parse(chunk):
                    yield event
            parser.close()
        except MultipartError as error:
            raise ApiError(ErrorCode.INVALID_MULTIPART, f"The multipart body cannot be read: {error}") from error

    async def _chunks(self, events: AsyncGenerator[_Event, None]) -> AsyncIterator[bytes]:
        async for event in events:
            if event is None:
                return
            assert not isinstance(event, MultipartSegment)
            yield bytes(event)

    async def _keep(self, name: str, events: AsyncGenerator[_Event, None]) -> None:
        text = bytearray()
        async for chunk in self._chunks(events):
            text += chunk
            if len(text) > MAX_TEXT_BYTES:
                message = f"A text field may have at most {MAX_TEXT_BYTES} bytes."
                raise ApiError(ErrorCode.TOO_LARGE, message, param=name[:100])
        if name in self.fields:
            raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, "A field was given twice.", param=name[:100])
        try:
            self.fields[name] = text.decode()
        except UnicodeDecodeError as error:
            raise ApiError(ErrorCode.INVALID_VALUE, "A text field must be UTF-8.", param=name[:100]) from error
