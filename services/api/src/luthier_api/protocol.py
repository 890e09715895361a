"""HTTP with bounds on what a client may send before anybody has looked at its key."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers together; of a chunk's head and of trailers too."""
HEAD_S = 60.0
"""So long after its first byte a head is there."""
UNREAD_S = 60.0
"""A client that reads nothing of its answer for so long is dropped: what it keeps waiting is there for all."""


class BoundedHttp(HttpToolsProtocol):
    """The parser keeps a head of any length, and waits for it as long as it takes; here it is cut off.

    A connection that was opened and says nothing may rest as long as one between two requests: proxies open some
    before they need them.
    """

    _num_kept = 0
    """Bytes since the parser last came to an end of something."""
    _hurry: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        self._read_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._read_on()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._num_kept += len(data)
        super().data_received(data)
        if self._num_kept > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")
        elif self._is_idle:
            # Whatever came has ended the wait for a next request, even where it begins none.
            self._expect_head(HEAD_S)

    def on_message_begin(self) -> None:
        self._stop_expecting()
        self._expect_head(HEAD_S)
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

    def _expect_head(self, within_s: float) -> None:
        if self._hurry is None:
            self._hurry = self.loop.call_later(min(within_s, self.timeout_keep_alive), self._give_up)

    def _relax(self) -> None:
        self._num_kept = 0
        self._stop_expecting()

    def _stop_expecting(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _give_up(self) -> None:
        """Not while an answer to the request before is on its way."""
        self._hurry = None
        if self._is_idle:
            self.transport.close()

    def _expect_reading(self) -> None:
        num_left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(UNREAD_S, self._drop_unless_read, num_left)

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _drop_unless_read(self, num_left: int) -> None:
        if self.transport.get_write_buffer_size() < num_left:
            self._expect_reading()
        else:
            self.transport.abort()

    @property
    def _is_idle(self) -> bool:
        """No request waits for its answer."""
        return bool(getattr(self.cycle, "response_complete", True))
