"""Around every request: its id, its span, and who sends it."""

import random
import time
from dataclasses import replace
from typing import Any

from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry.trace import SpanKind, StatusCode

from luthier_api.around.failed import FailedKeys
from luthier_api.domain import Principal
from luthier_api.domain import Scope as PrincipalScope
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode, status_of
from luthier_api.keys import KeyRing
from luthier_common.kit.telemetry import meter, tracer, use_traceparent

PUBLIC = "public"
SCOPE = "scope"
FILTERS = "filters_metadata"
API_VERSIONS = "api_versions"
STRICT_HEADER = "x-luthier-strict"
KEY_HEADERS = (b"x-api-key", b"api-key")
MAX_END_USER = 256
_ID = "request_id"
_HEADERS = "headers"
_ids = random.Random()
"""Ids name requests and guard nothing: asking the kernel for each would let go of the interpreter's lock each time."""
_duration = meter().create_histogram("http.server.request.duration", "s", "How long requests took, to their last byte")


def request_id_of(scope: Scope) -> str:
    """This request's id: ours, made once; a client's own `x-request-id` is not believed."""
    state: dict[str, Any] = scope["state"]
    if _ID not in state:
        state[_ID] = f"req_{_ids.getrandbits(128):032x}"
    return str(state[_ID])


async def add_request_id(message: Message, scope: Scope) -> None:
    """Put `x-request-id` on every answer, errors and unknown addresses included."""
    if message["type"] == "http.response.start" and scope["type"] == ScopeType.HTTP:
        message["headers"] = [*message["headers"], (b"x-request-id", request_id_of(scope).encode())]


class Tracing(ASGIMiddleware):
    """One span and one duration for each request, named by its route and never by its path."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        route = str(scope.get("path_template") or "unknown")
        method = str(scope["method"])  # type: ignore[typeddict-item]
        attributes = {"http.request.method": method, "http.route": route, "luthier.request.id": request_id_of(scope)}
        measured: dict[str, str | int] = {"http.request.method": method, "http.route": route}
        parent = header_of(scope, b"traceparent")
        began_s = time.monotonic()
        with (
            use_traceparent(parent.decode("latin-1") if parent else None),
            tracer().start_as_current_span(
                f"{method} {route}",
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span,
        ):

            def saw_status(status: int) -> None:
                measured["http.response.status_code"] = status
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(StatusCode.ERROR)

            async def send_seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    saw_status(message["status"])
                await send(message)

            try:
                await next_app(scope, receive, send_seen)
            except Exception as error:
                # What a middleware raises is turned into an answer further out than here.
                saw_status(status_of(error))
                raise
            finally:
                _duration.record(time.monotonic() - began_s, measured)


class Authentication(ASGIMiddleware):
    """Turns the key into the request's principal; routes marked public need none."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = PUBLIC

    def __init__(self, keys: KeyRing, failed: FailedKeys) -> None:
        self._keys = keys
        self._failed = failed

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        key = key_of(scope)
        is_over = self._failed.is_over(scope) and not (key and self._keys.has_seen(key))
        if is_over and key:
            async with self._failed.turn():
                principal = await self._keys.principal(key)
        else:
            principal = await self._keys.principal(key) if key else None
        if principal is None:
            if is_over:
                raise self._failed.refused()
            self._failed.count(scope)
            message = "Incorrect API key provided." if key else "No API key provided: send it as a Bearer token."
            raise ApiError(ErrorCode.INVALID_API_KEY, message, headers={"www-authenticate": "Bearer"})
        scope["user"] = _on_behalf_of(principal, headers_of(scope, b"x-on-behalf-of"))
        await next_app(scope, receive, send)


def key_of(scope: Scope) -> str | None:
    """The key, whichever header carries it."""
    scheme, _, bearer = (header_of(scope, b"authorization") or b"").decode("latin-1").partition(" ")
    sent = [bearer if scheme.lower() == "bearer" else ""]
    sent += [(header_of(scope, name) or b"").decode("latin-1") for name in KEY_HEADERS]
    keys = {key.strip() for key in sent} - {""}
    if len(keys) > 1:
        raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, "Two different API keys were sent.", param="Authorization")
    return keys.pop() if keys else None


def _on_behalf_of(principal: Principal, values: set[bytes]) -> Principal:
    """The key as it acts for an end user; ApiError without the scope for it.

    A header that names nobody, or not clearly one, is refused: without an end user the key would see all of them.
    """
    if not values:
        return principal
    if not principal.may(PrincipalScope.ON_BEHALF_OF):
        message = f"This API key lacks the scope {PrincipalScope.ON_BEHALF_OF}."
        raise ApiError(ErrorCode.MISSING_SCOPE, message, param="X-On-Behalf-Of", headers=NO_RETRY)
    try:
        [end_user] = [value.decode().strip() for value in values]
    except ValueError:
        end_user = ""
    if not end_user:
        message = "X-On-Behalf-Of must name one end user, in UTF-8."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="X-On-Behalf-Of")
    if len(end_user) > MAX_END_USER:
        message = f"X-On-Behalf-Of has at most {MAX_END_USER} characters."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="X-On-Behalf-Of")
    return replace(principal, end_user=end_user)


class Admission(ASGIMiddleware):
    """Refuses what the key may not do, and what the route would not read, before anything is done for it.

    A middleware and not guards: Litestar copies a route's handler for each guard of each request.
    """

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = PUBLIC

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        handler = scope["route_handler"]
        check_scope(scope["user"], handler)
        if (header_of(scope, STRICT_HEADER.encode()) or b"true").lower() not in (b"true", b"false"):
            raise ApiError(ErrorCode.INVALID_VALUE, f"{STRICT_HEADER} must be true or false.", param=STRICT_HEADER)
        if scope["query_string"]:
            check_query(ASGIConnection(scope), handler)
        await next_app(scope, receive, send)


def check_scope(principal: Principal, handler: BaseRouteHandler) -> None:
    """Refuse a key without the scope that the route declares. A route that declares none is refused to everybody."""
    needed = handler.opt.get(SCOPE)
    if needed is None or not principal.may(str(needed)):
        message = f"This API key lacks the scope {needed}."
        raise ApiError(ErrorCode.MISSING_SCOPE, message, headers=NO_RETRY)


def check_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Refuse a query parameter that the route does not read: a filter that is ignored answers another question."""
    parameters = handler.parsed_fn_signature.parameters.items()
    known = {name: field for name, field in parameters if isinstance(field.kwarg_definition, QueryParameter)}
    given: dict[str, str] = {}
    for name, value in connection.query_params.multi_items():
        if name == "api-version" and value in handler.opt.get(API_VERSIONS, ()):
            continue
        if name not in known and not (handler.opt.get(FILTERS) and name.partition("[")[0] == "metadata"):
            message = f"Unrecognized query parameter: {name[:100]}"
            raise ApiError(ErrorCode.UNKNOWN_PARAMETER, message, param=name[:100])
        is_list = name in known and known[name].is_non_string_collection
        if given.setdefault(name, value) != value and not is_list:
            message = f"The query parameter {name[:100]} is given twice with different values."
            raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=name[:100])


def headers_of(scope: Scope, name: bytes) -> set[bytes]:
    """All different values of a header that may be sent once."""
    return {value for key, value in scope["headers"] if key == name}


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header."""
    state: dict[str, Any] = scope["state"]
    if _HEADERS not in state:
        state[_HEADERS] = dict(reversed(list(scope["headers"])))
    found: bytes | None = state[_HEADERS].get(name)
    return found
