"""Rate limits: so many requests a minute for a key."""

from typing import Any

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.middleware import PUBLIC
from luthier_api.rates import Windows, rate_headers, wait_headers

_HEADERS = "rate_headers"


class RateLimits(ASGIMiddleware):
    """Counts each request of a key, and refuses those above its limit before anything is done for them."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = PUBLIC

    def __init__(self, windows: Windows, requests_per_minute: int) -> None:
        self._windows = windows
        self._requests_per_minute = requests_per_minute

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        principal = scope["user"]
        limit = self._requests_per_minute if principal.rate_limit is None else principal.rate_limit
        verdict = self._windows.take(principal.key_id, limit)
        state: dict[str, Any] = scope["state"]
        state[_HEADERS] = rate_headers(verdict)
        if not verdict.is_admitted:
            message = f"This key may send {limit} requests a minute."
            raise ApiError(ErrorCode.RATE_LIMIT_EXCEEDED, message, headers=wait_headers(verdict.reset_s))
        await next_app(scope, receive, send)


async def add_rate_headers(message: Message, scope: Scope) -> None:
    """Put what the key has left on its answers, errors included."""
    if message["type"] == "http.response.start" and scope["type"] == ScopeType.HTTP:
        state: dict[str, Any] = scope["state"]
        if (rates := state.get(_HEADERS)) is not None:
            message["headers"] = [
                *message["headers"],
                *((name.encode(), text.encode()) for name, text in rates.items()),
            ]
