"""HTTP with bounds on what a client may send before anybody has looked at its key."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers together; of a chunk's head and of trailers too."""
HEAD_S = 60.0


class BoundedHttp(HttpToolsProtocol):
    """The parser keeps a head of any length, and waits for it as long as it takes; here it is cut off."""

    _num_kept = 0
    """Bytes since the parser last came to an end of something."""
    _hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_kept += len(data)
        super().data_received(data)
        if self._num_kept > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._relax()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_kept = 0
        super().on_message_complete()

    def _expect_head(self) -> None:
        if self._hurry is None:
            self._hurry = self.loop.call_later(HEAD_S, self._give_up)

    def _relax(self) -> None:
        self._num_kept = 0
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _give_up(self) -> None:
        """Not while an answer to the request before is on its way."""
        self._hurry = None
        if getattr(self.cycle, "response_complete", True):
            self.transport.close()
