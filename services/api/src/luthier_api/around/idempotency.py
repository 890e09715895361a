"""A repeated POST is done once: by its Idempotency-Key, or, where a route asks for it, by its body."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from luthier_api.around.audit import REPLAYED
from luthier_api.around.bodies import Body, read_body
from luthier_api.around.connections import UNMARKED_CLIENTS, Connections
from luthier_api.domain import Principal
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.idempotency import (
    MAX_KEPT_BYTES,
    SECRET_MARK,
    is_final,
    is_kept,
    is_reused,
    not_kept,
    read_key,
    reservation_name,
)
from luthier_api.middleware import PUBLIC, header_of
from luthier_api.services.repeats import Repeat
from luthier_api.store.reservations import DONE, Held, Reservations
from luthier_common.contract.ids import new_id
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES

log = logging.getLogger(__name__)
CORE, REPEAT = "core", "repeat"
ANSWER, FORGOTTEN, STORED = "answer", "forgotten", "stored"
"""A route whose answers hold what a model said, or what a user may have deleted since, tells what becomes of them: they
are not kept here. `stored` ones are read again by the route itself, which hears `DONE_BEFORE`."""
DONE_BEFORE = "done_before"
RETRY = "retry"
"""Whether the request was begun before, with this key, and did not come to an end: what it asks for may be done."""
WAIT_S = 30.0
LEASE_S = 10.0
"""So long after a crash the repetition of a request that was running waits before it is executed."""
_POLL_S = (0.05, 0.5)
REPLAYED_HEADER = (b"idempotent-replayed", b"true")


class Idempotency(ASGIMiddleware):
    """Inside admission, so that nothing is reserved for who may not ask, or shown again.

    A repetition is the same request of the same key, for the same end user.
    """

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = PUBLIC

    def __init__(self, reservations: Reservations, connections: Connections, clock: Clock, *, most_bytes: int) -> None:
        """No form that is read here, rather than by a handler, is larger than that."""
        self._reservations = reservations
        self._connections = connections
        self._clock = clock
        self._most_bytes = most_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        is_post = scope["method"] == "POST"  # type: ignore[typeddict-item]
        key = read_key(header_of(scope, b"idempotency-key")) if is_post else None
        principal: Principal = scope["user"]
        if not is_post or (key is None and not scope["route_handler"].opt.get(REPEAT)):
            await next_app(scope, receive, send)
        elif key is None:
            await self._watched(scope, receive, send, next_app)
        else:
            route = f"{scope['path']}?{scope['query_string']!r}"
            name = reservation_name((principal.key_id, principal.end_user), route, key)
            await self._keyed(name, await read_body(scope, receive), scope, send, next_app)

    async def _keyed(self, name: str, body: Body, scope: Scope, send: Send, next_app: ASGIApp) -> None:
        run = secrets.token_hex(8)
        fresh = new_id("", self._clock.now())
        held = await self._take(name, run, fresh, body.known)
        if is_reused(held.fingerprint, body.known):
            raise _reused()
        if held.is_ours:
            scope["state"][RETRY] = held.core != fresh
            await failpoint("idempotency.after_take")
            await self._execute(name, run, held, body, scope, send, next_app)
        else:
            fingerprint = await body.read_to_end(self._most_bytes)
            if is_reused(held.fingerprint, fingerprint):
                raise _reused()
            if held.body is None and scope["route_handler"].opt.get(ANSWER) == STORED:
                scope["state"] |= {CORE: held.core, DONE_BEFORE: True, REPLAYED: True}
                await next_app(scope, body.receive, _marked(send))
            else:
                await _replay(held, scope, send)

    async def _take(self, name: str, run: str, core: str, fingerprint: str | None) -> Held:
        """The reservation, when it is ours or done; ApiError when the first one takes too long."""
        deadline_s = self._clock.monotonic_s() + WAIT_S
        poll_s = _POLL_S[0]
        while True:
            held = await self._reservations.take(name, run, core, fingerprint)
            if held.is_ours or held.state == DONE or is_reused(held.fingerprint, fingerprint):
                return held
            if self._clock.monotonic_s() > deadline_s:
                message = "The first request with this Idempotency-Key still runs."
                raise ApiError(ErrorCode.IDEMPOTENCY_IN_PROGRESS, message, param="Idempotency-Key")
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 2, _POLL_S[1])

    async def _execute(
        self, name: str, run: str, held: Held, body: Body, scope: Scope, send: Send, next_app: ASGIApp
    ) -> None:
        state: dict[str, Any] = scope["state"]
        state[CORE] = held.core
        answer = _Answer(send)
        is_private = ANSWER in scope["route_handler"].opt

        async def end() -> None:
            """Before the answer goes out. If it fails, the repetition is executed with the same core."""
            try:
                await failpoint("idempotency.before_keep")
                is_secret = is_private and answer.status < 400 and answer.is_complete
                if (answer.is_final or is_secret) and body.digest() is not None:
                    kept = None if is_secret else answer.kept_body
                    await self._reservations.finish(name, run, body.digest(), answer.status, kept)
                else:
                    await self._reservations.leave(name, run, body.digest())
                await failpoint("idempotency.after_keep")
            except OUTAGES as error:
                log.warning("an answer was not kept for repetitions: %s", type(error).__name__)

        answer.before_sending = end
        async with self._renewed(name, run):
            await next_app(scope, body.receive, answer.send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Without a key: notes when the answer does not reach the client; the same body again is then a repetition."""
        state: dict[str, Any] = scope["state"]

        async def send_watched(message: Message) -> None:
            repeat: Repeat | None = state.get(REPEAT)
            if repeat is not None and message["type"] == "http.response.start":
                if message["status"] >= 500 or is_gone(receive):
                    await repeat.not_answered()
                else:
                    repeat.is_answered = True
            await send(message)

        try:
            await next_app(scope, receive, send_watched)
        finally:
            if (ended := state.get(REPEAT)) is not None:
                client = scope.get("client")
                if client and (header_of(scope, b"user-agent") or b"").startswith(UNMARKED_CLIENTS):
                    self._connections.answered(client, ended)
                await ended.end()

    @asynccontextmanager
    async def _renewed(self, name: str, run: str) -> AsyncIterator[None]:
        """While a request runs, nobody takes it over."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_S / 3)
                with contextlib.suppress(*OUTAGES):
                    await self._reservations.renew(name, run)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()


class _Answer:
    """Holds an answer back until it is known whether it can be kept, and kept."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self._is_passing = False
        self.status = 0
        self.is_complete = False
        self.is_final = False
        self.kept_body: bytes | None = None
        self.before_sending: Any = None

    async def send(self, message: Message) -> None:
        if self._is_passing:
            await self._send(message)
            return
        self._held.append(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = {name.lower(): value for name, value in message["headers"]}
            if is_final(self.status) and is_kept(self._headers, b""):
                return
        elif message["type"] == "http.response.body":
            self._body += message["body"]
            self.is_complete = not message["more_body"]
            if not self.is_complete and len(self._body) <= MAX_KEPT_BYTES:
                return
            self._decide()
        self._is_passing = True
        await self.before_sending()
        for held in self._held:
            await self._send(held)

    def _decide(self) -> None:
        body = bytes(self._body)
        if is_kept(self._headers, body):
            self.is_final, self.kept_body = True, body
        elif SECRET_MARK in body:
            self.is_final = True


async def _replay(held: Held, scope: Scope, send: Send) -> None:
    if held.status is None or held.body is None:
        raise not_kept()
    state: dict[str, Any] = scope["state"]
    state[REPLAYED] = True
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(held.body)).encode()),
        REPLAYED_HEADER,
    ]
    await send({"type": "http.response.start", "status": held.status, "headers": headers})
    await send({"type": "http.response.body", "body": held.body, "more_body": False})


def _marked(send: Send) -> Send:
    """Says of a good answer that it is the first one again."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            message["headers"] = [*message["headers"], REPLAYED_HEADER]
        await send(message)

    return send_marked


def is_gone(receive: Receive) -> bool:
    """Whether the client has left. Its body was read, so the only message that can be there already is that."""
    waiting = receive()
    try:
        waiting.send(None)  # type: ignore[attr-defined]
    except StopIteration as answered:
        return bool(answered.value["type"] == "http.disconnect")
    waiting.close()  # type: ignore[attr-defined]
    return False


def _reused() -> ApiError:
    message = "This Idempotency-Key was used with another body."
    return ApiError(ErrorCode.IDEMPOTENCY_KEY_REUSED, message, param="Idempotency-Key")
