"""HTTP for the rooms that need answers: chat completions in OpenAI's shape, whole or as server-sent events."""

import asyncio
import hmac
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, TypeVar

from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.response import Stream

from luthier_common.kit.errors import LuthierError
from luthier_common.kit.generation import MAX_BODY_BYTES
from luthier_common.kit.telemetry import meter, tracer, use_traceparent
from luthier_inference.chat import (
    ChatBody,
    Header,
    InvalidRequestError,
    Usage,
    chunk,
    completion,
    error_to_wire,
    parse_chat,
    usage_chunk,
)
from luthier_inference.domain import Delta
from luthier_inference.serving import Prepared, Serving

logger = logging.getLogger(__name__)
HttpRequest = Request[Any, Any, State]
_T = TypeVar("_T")
_tokens = meter().create_counter("luthier.inference.tokens", "{token}", "Tokens made")


class UnauthorizedError(LuthierError):
    """The call does not carry the token that the rooms share."""

    code = "unauthorized"


class ClientGoneError(Exception):
    """The caller hung up; nobody waits for the answer."""


def build_app(serving: Serving, token: str) -> Litestar:
    """The node's HTTP application. An empty token lets nobody in."""

    def require_token(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        given = connection.headers.get("authorization", "").removeprefix("Bearer ")
        if not token or not hmac.compare_digest(given.encode(), token.encode()):
            raise UnauthorizedError("The internal token is missing or wrong.")

    return Litestar(
        route_handlers=[create_chat_completion, list_models],
        guards=[require_token],
        state=State({"serving": serving}),
        exception_handlers={Exception: _answer_error},
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=None,
        logging_config=None,
    )


@get("/internal/models")
async def list_models(state: State) -> dict[str, Any]:
    """The bases that this node answers for."""
    bases = await _serving(state).list_ready()
    return {"object": "list", "data": [{"id": base["_id"], "object": "model"} for base in bases]}


@post("/internal/chat/completions", status_code=200)
async def create_chat_completion(request: HttpRequest, state: State) -> Response[Any]:
    """One answer. Errors before its first token have a status of their own, later ones come as an event."""
    body = await _read_body(request)
    with (
        use_traceparent(request.headers.get("traceparent")),
        tracer().start_as_current_span("inference.begin", attributes={"luthier.base": body.base}),
    ):
        serving = _serving(state)
        async with AsyncExitStack() as in_use:
            prepared = await _while_connected(request, in_use.enter_async_context(serving.prepare(body)))
            fingerprint = prepared.base.fingerprint
            header = Header.new(f"chatcmpl-{secrets.token_hex(12)}", body.model or body.base, fingerprint)
            deltas = serving.answer(prepared)
            if not body.stream:
                return Response(await _while_connected(request, _collect(header, prepared, deltas)))
            first = await _while_connected(request, anext(deltas))
            events = _events(header, body, prepared, first, deltas, in_use.pop_all())
            await anext(events)
            return Stream(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _read_body(request: HttpRequest) -> ChatBody:
    try:
        return parse_chat(json.loads(await request.body()))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("invalid_body", "The body is not JSON.", None) from error


async def _collect(header: Header, prepared: Prepared, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
    usage = Usage(len(prepared.asked.prompt_ids))
    texts: list[str] = []
    async with aclosing(deltas):
        async for delta in deltas:
            texts.append(delta.text)
            _count(usage, delta, prepared)
            if delta.finish_reason is not None:
                return completion(header, texts, delta.finish_reason, usage)
    raise AssertionError("an answer ended without a reason")


async def _events(
    header: Header,
    body: ChatBody,
    prepared: Prepared,
    first: Delta,
    rest: AsyncGenerator[Delta, None],
    in_use: AsyncExitStack,
) -> AsyncIterator[bytes]:
    """Whoever leaves ends the answer and its use of the base: even before the first piece, which is empty for that."""
    usage = Usage(len(prepared.asked.prompt_ids))
    null_usage = body.include_usage
    async with in_use, aclosing(rest):
        yield b""
        yield _event(chunk(header, {"role": "assistant", "content": ""}, null_usage=null_usage))
        try:
            async for delta in _chain(first, rest):
                _count(usage, delta, prepared)
                if delta.text:
                    yield _event(chunk(header, {"content": delta.text}, null_usage=null_usage))
                if delta.finish_reason is not None:
                    yield _event(chunk(header, {}, delta.finish_reason, null_usage=null_usage))
        except LuthierError as error:
            yield _event(error_to_wire(error)[1])
            return
        if null_usage:
            yield _event(usage_chunk(header, usage))
        yield b"data: [DONE]\n\n"


async def _chain(first: Delta, rest: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    yield first
    async for delta in rest:
        yield delta


def _count(usage: Usage, delta: Delta, prepared: Prepared) -> None:
    usage.num_completion += delta.num_tokens
    _tokens.add(delta.num_tokens, {"luthier.base": prepared.base.name})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _while_connected(request: HttpRequest, work: Awaitable[_T]) -> _T:
    """The result of `work`, which is cancelled when the caller hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()
                with suppress(asyncio.CancelledError):
                    await pending


async def _wait_gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer_error(_request: HttpRequest, error: Exception) -> Response[Any]:
    if isinstance(error, ClientGoneError):
        return Response(None, status_code=499)
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "invalid_request"
        envelope = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": code}
        return Response({"error": envelope}, status_code=error.status_code)
    status, body = error_to_wire(error)
    if not isinstance(error, LuthierError):
        logger.error("a request failed", exc_info=error)
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return Response(body, status_code=status, headers=headers)


def _serving(state: State) -> Serving:
    serving: Serving = state["serving"]
    return serving
