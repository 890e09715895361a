"""Every error as the envelope that clients know, mapped in one place."""

import errno
import logging
import re
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from luthier_api.around.idempotency import is_gone
from luthier_api.errors import ApiError, ErrorCode, param_of
from luthier_api.middleware import request_id_of
from luthier_common.kit.mongo import OUTAGES, is_outage

log = logging.getLogger(__name__)
AnyRequest = Request[Any, Any, Any]
_BY_STATUS = {
    401: ErrorCode.INVALID_API_KEY,
    403: ErrorCode.MISSING_SCOPE,
    404: ErrorCode.UNKNOWN_URL,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.TOO_LARGE,
}
_REQUIRED = ("Field required", "Missing required")
_BODY = "data"
"""What handlers call the body."""
_NO_OBJECT = re.compile(r"Input should be a valid dictionary( or instance of \w+)?|Expected `object`, got `\w+`|'data'")
_UNKNOWN = "Extra inputs are not permitted"
MAX_PARAM = 200


def handlers() -> ExceptionHandlersMap:
    mapped: ExceptionHandlersMap = {
        ApiError: _known,
        ValidationException: _invalid,
        HTTPException: _http,
        RecursionError: _not_json,
        UnicodeDecodeError: _not_json,
        OSError: _disk,
        Exception: _internal,
    }
    mapped.update(dict.fromkeys(OUTAGES, _unavailable))
    return mapped


def _known(request: AnyRequest, error: ApiError) -> Response[Any]:
    """The envelope, with the request's id beside the four keys that clients know."""
    body = error.body()
    request.scope["state"]["error_code"] = body["error"]["code"]
    body["error"]["request_id"] = request_id_of(request.scope)
    return Response(body, status_code=error.status, headers=error.headers, media_type="application/json")


def _invalid(request: AnyRequest, error: ValidationException) -> Response[Any]:
    return _known(request, invalid(error))


def invalid(error: ValidationException) -> ApiError:
    """The first finding, naming the parameter by its path."""
    extra: Any = error.extra or []
    first = extra[0] if isinstance(extra, list) and extra else {}
    param = param_of(str(first.get("key") or ""))[:MAX_PARAM] or None
    message = str(first.get("message") or error.detail).removeprefix("Value error, ")
    if _NO_OBJECT.fullmatch(message):
        param, message = (None if param == _BODY else param), "must be an object"
    if message.startswith(_REQUIRED):
        return ApiError(ErrorCode.MISSING_PARAMETER, f"Missing required parameter: '{param}'.", param=param)
    if message == _UNKNOWN:
        return ApiError(ErrorCode.UNKNOWN_PARAMETER, f"Unrecognized request argument supplied: {param}", param=param)
    told = f"Invalid value for '{param}': {message}" if param else f"The body is wrong: {message}"
    return ApiError(ErrorCode.INVALID_VALUE, told, param=param)


def _http(request: AnyRequest, error: HTTPException) -> Response[Any]:
    if error.status_code >= 500 and is_gone(request.receive):
        log.info("a client hung up", extra={"request_id": request_id_of(request.scope)})
        return _known(request, ApiError(ErrorCode.CLIENT_GONE, "The client hung up."))
    if error.status_code >= 500:
        return _internal(request, error)
    known = _BY_STATUS.get(error.status_code)
    if known is ErrorCode.UNKNOWN_URL:
        message = f"Invalid URL ({request.method} {request.url.path[:200]})"
    elif known is not None:
        message = known.sentence
    else:
        known, message = ErrorCode.INVALID_JSON, "The body is not JSON that can be read."
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return _known(request, ApiError(known, message, headers=headers))


def _not_json(request: AnyRequest, _error: Exception) -> Response[Any]:
    return _known(request, ApiError(ErrorCode.INVALID_JSON, "The body is not JSON that can be read."))


def _unavailable(request: AnyRequest, error: Exception) -> Response[Any]:
    log.warning("a server is away: %s", type(error).__name__, extra={"request_id": request_id_of(request.scope)})
    return _known(request, ApiError(ErrorCode.UNAVAILABLE, "A server did not answer; try again."))


def _disk(request: AnyRequest, error: OSError) -> Response[Any]:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return _internal(request, error)
    log.error("the disk is full", extra={"request_id": request_id_of(request.scope)})
    return _known(request, ApiError(ErrorCode.STORAGE_FULL, ErrorCode.STORAGE_FULL.sentence))


def _internal(request: AnyRequest, error: Exception) -> Response[Any]:
    if is_outage(error):
        return _unavailable(request, error)
    request_id = request_id_of(request.scope)
    log.error("a request failed", exc_info=error, extra={"request_id": request_id})
    return _known(request, ApiError(ErrorCode.INTERNAL, f"An internal error; the logs hold it under {request_id}."))
