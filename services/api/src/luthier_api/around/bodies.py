"""A request's body where it is known by what it holds, in bounds of size and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar.types import HTTPRequestEvent, Receive, Scope

from luthier_api.errors import NO_RETRY, ApiError, ErrorCode
from luthier_api.idempotency import BodyFingerprint, Fingerprint, FormFingerprint, fingerprint_for
from luthier_api.middleware import header_of

MAX_BUFFERED_BYTES = 16 * 1024 * 1024
HANG_UP = {**NO_RETRY, "connection": "close"}


class Body:
    """A request's body on its way to the handler, and what it is known by."""

    def __init__(self, receive: Receive, fingerprint: Fingerprint, buffered: bytes | None) -> None:
        self._receive = receive
        self._fingerprint = fingerprint
        self._buffered = buffered
        self._is_complete = buffered is not None
        self.known = fingerprint.digest() if buffered is not None else None

    def digest(self) -> str | None:
        return self._fingerprint.digest() if self._is_complete else None

    async def receive(self) -> Any:
        if self._buffered is not None:
            body, self._buffered = self._buffered, None
            return HTTPRequestEvent(type="http.request", body=body, more_body=False)
        message = await self._receive()
        if message["type"] == "http.request" and not self._is_complete:
            self._fingerprint.feed(message["body"])
            self._is_complete = not message["more_body"]
        return message

    async def read_to_end(self, most_bytes: int) -> str | None:
        """The fingerprint of a body that nobody else reads; nothing of it is kept. ApiError when it is larger."""
        num_bytes = 0
        while not self._is_complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            num_bytes += len(message["body"])
            if num_bytes > most_bytes:
                raise ApiError(ErrorCode.TOO_LARGE, ErrorCode.TOO_LARGE.sentence, headers=HANG_UP)
        return self.digest()


@asynccontextmanager
async def in_time(within_s: float) -> AsyncIterator[None]:
    """ApiError when a body takes longer to come."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError as error:
        message = f"The body was not complete after {within_s:g} s."
        raise ApiError(ErrorCode.UPLOAD_TIMEOUT, message, headers=HANG_UP) from error


async def read_body(scope: Scope, receive: Receive) -> Body:
    """Multipart bodies may be large and are fingerprinted while they pass; any other is read first."""
    fingerprint = fingerprint_for((header_of(scope, b"content-type") or b"").decode("latin-1"))
    if isinstance(fingerprint, FormFingerprint):
        return Body(receive, fingerprint, None)
    assert isinstance(fingerprint, BodyFingerprint)
    body, is_complete = bytearray(), False
    while not is_complete:
        message = await receive()
        if message["type"] != "http.request":
            raise ApiError(ErrorCode.CLIENT_GONE, "The client hung up.")
        body += message["body"]
        is_complete = not message["more_body"]
        if len(body) > MAX_BUFFERED_BYTES:
            raise ApiError(ErrorCode.TOO_LARGE, ErrorCode.TOO_LARGE.sentence)
    fingerprint.feed(bytes(body))
    return Body(receive, fingerprint, bytes(body))
