"""Requests' bodies in bounds of size and time, and what a body is known by."""

import asyncio
from typing import Any

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPRequestEvent, Receive, Scope, Send

from luthier_api.errors import NO_RETRY, ApiError, ErrorCode
from luthier_api.idempotency import BodyFingerprint, Fingerprint, FormFingerprint, fingerprint_for
from luthier_api.middleware import header_of

MAX_BUFFERED_BYTES = 1024 * 1024
"""Of a body that is no form, where the route takes forms of any size: it will be refused for what it is."""
HANG_UP = {**NO_RETRY, "connection": "close"}


class Bodies(ASGIMiddleware):
    """Ends requests whose body does not come: what has come is held in memory, or holds a place among the uploads."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, *, form_s: float, other_s: float) -> None:
        """So many seconds after the first look at it the body is there: a form where uploads go, or any other."""
        self._form_s = form_s
        self._other_s = other_s

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        kind = (header_of(scope, b"content-type") or b"").lstrip().lower()
        is_upload = _most_bytes(scope) is None and kind.startswith(b"multipart/")
        await next_app(scope, _in_time(receive, self._form_s if is_upload else self._other_s), send)


def _in_time(receive: Receive, within_s: float) -> Receive:
    """Raises ApiError when the body takes longer. Behind it, only the client's leaving is waited for, without end."""
    deadline_s: float | None = None
    is_complete = False

    async def receive_in_time() -> HTTPReceiveMessage:
        nonlocal deadline_s, is_complete
        if is_complete:
            return await receive()  # type: ignore[return-value]
        deadline_s = deadline_s or asyncio.get_running_loop().time() + within_s
        try:
            async with asyncio.timeout_at(deadline_s):
                message = await receive()
        except TimeoutError as error:
            told = f"The body was not complete after {within_s:g} s."
            raise ApiError(ErrorCode.UPLOAD_TIMEOUT, told, headers=HANG_UP) from error
        is_complete = not (message["type"] == "http.request" and message["more_body"])
        return message  # type: ignore[return-value]

    return receive_in_time


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


def _most_bytes(scope: Scope) -> int | None:
    """The largest body of the route; None where it takes forms of any size."""
    most: int | None = scope["route_handler"].resolve_request_max_body_size()  # type: ignore[union-attr]
    return most


async def read_body(scope: Scope, receive: Receive) -> Body:
    """Multipart bodies may be large and are fingerprinted while they pass; any other is read first."""
    most_bytes = _most_bytes(scope) or MAX_BUFFERED_BYTES
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
        if len(body) > most_bytes:
            raise ApiError(ErrorCode.TOO_LARGE, ErrorCode.TOO_LARGE.sentence, headers=HANG_UP)
    fingerprint.feed(bytes(body))
    return Body(receive, fingerprint, bytes(body))
