"""Writes the audit row of a changing call: after it was done, and before its answer is sent."""

from typing import Any

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from luthier_api.around.failed import address_of
from luthier_api.audit import AuditLog
from luthier_api.domain import Principal
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.keys import without_keys
from luthier_api.middleware import PUBLIC, request_id_of
from luthier_api.rates import Windows
from luthier_common.kit.mongo import Doc

OPERATION = "operation"
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MAX_REFUSED_A_MINUTE = 60
"""Rows of calls that nobody answers for: whoever has no key must not fill the log."""
MAX_THING = 256
ERROR_CODE = "error_code"
REPLAYED = "idempotent_replayed"


class Auditing(ASGIMiddleware):
    """Around authentication, so that refused keys are seen too."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = PUBLIC

    def __init__(self, audit_log: AuditLog, refused: Windows) -> None:
        self._log = audit_log
        self._refused = refused

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope["method"] not in CHANGING:  # type: ignore[typeddict-item]
            await next_app(scope, receive, send)
            return
        if self._log.is_full:
            raise ApiError(ErrorCode.UNAVAILABLE, "Changes cannot be recorded for now; try again.")

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                state: dict[str, Any] = scope["state"]
                await self._record(scope, message["status"], state.get(ERROR_CODE))
            await send(message)

        try:
            await next_app(scope, receive, send_recorded)
        except ApiError as error:
            await self._record(scope, error.status, error.error.code)
            raise

    async def _record(self, scope: Scope, status: int, code: str | None) -> None:
        principal: Principal | None = scope.get("user")
        if status == ErrorCode.RATE_LIMIT_EXCEEDED.status and code != ErrorCode.TOO_MANY_QUEUED_JOBS.code:
            return
        if principal is None and not self._refused.take("refused", MAX_REFUSED_A_MINUTE).is_admitted:
            return
        await self._log.record(audited(scope, principal, status, code))


def audited(scope: Scope, principal: Principal | None, status: int, code: str | None) -> Doc:
    """Who did what to which thing, from where, and how it ended."""
    state: dict[str, Any] = scope["state"]
    things = "/".join(str(thing).strip("/") for thing in scope.get("path_params", {}).values())
    return {
        "org": principal.org if principal else None,
        "project": principal.project if principal else None,
        "key": principal.key_id if principal else None,
        "end_user": principal.end_user if principal else None,
        "address": address_of(scope),
        "request_id": request_id_of(scope),
        "operation": str(scope["route_handler"].opt.get(OPERATION, "unknown")),
        "thing": without_keys(things)[:MAX_THING] or None,
        "status": status,
        "code": code,
        "replayed": bool(state.get(REPLAYED)),
    }
