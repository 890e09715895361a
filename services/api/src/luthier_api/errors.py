"""Every error that the API answers with: one table of stable codes, one exception that carries a row of it."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from luthier_common.kit.errors import LuthierError

NO_RETRY = {"x-should-retry": "false"}


class ErrorCode(Enum):
    """A stable code with the HTTP status it comes with, the error's type on the wire, and what it means."""

    def __init__(self, code: str, status: int, kind: str, sentence: str) -> None:
        self.code = code
        self.status = status
        self.type = kind
        self.sentence = sentence

    INVALID_REQUEST = "invalid_request", 400, "invalid_request_error", "The request is malformed; `param` names where."
    INVALID_JSON = "invalid_json", 400, "invalid_request_error", "The body is not JSON that can be read."
    INVALID_VALUE = "invalid_value", 400, "invalid_request_error", "A parameter has a value that is not allowed."
    MISSING_PARAMETER = "missing_required_parameter", 400, "invalid_request_error", "A required parameter is missing."
    UNKNOWN_PARAMETER = "unknown_parameter", 400, "invalid_request_error", "A parameter that the API does not know."
    UNSUPPORTED_PARAMETER = (
        "unsupported_parameter",
        400,
        "invalid_request_error",
        "A parameter that is known but cannot be honoured; it is refused rather than ignored.",
    )
    CONFLICTING_PARAMETERS = (
        "conflicting_parameters",
        400,
        "invalid_request_error",
        "The same thing was given twice with different values.",
    )
    INVALID_CURSOR = "invalid_cursor", 400, "invalid_request_error", "`after` is no id of an item of this list."
    INVALID_MULTIPART = "invalid_multipart", 400, "invalid_request_error", "The body is no complete multipart form."
    FILE_NOT_FOUND = "file_not_found", 400, "invalid_request_error", "A file that the request names does not exist."
    INVALID_PURPOSE = "invalid_file_purpose", 400, "invalid_request_error", "The file was uploaded for another purpose."
    BASE_NOT_FOUND = "model_not_found", 400, "invalid_request_error", "The model does not exist, or not for this use."
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency_key_reused",
        400,
        "invalid_request_error",
        "The Idempotency-Key was used before with another body.",
    )
    INVALID_API_KEY = "invalid_api_key", 401, "invalid_request_error", "No API key was given, or it is not valid."
    MISSING_SCOPE = "missing_scope", 403, "permission_error", "The API key lacks the scope that the message names."
    BASE_NOT_DELETABLE = "base_model_not_deletable", 403, "permission_error", "Base models cannot be deleted."
    UNKNOWN_URL = "unknown_url", 404, "invalid_request_error", "There is no such address."
    NOT_FOUND = "not_found", 404, "invalid_request_error", "There is no such thing in this project."
    MODEL_NOT_FOUND = "model_not_found", 404, "invalid_request_error", "There is no such model in this project."
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "invalid_request_error", "The address does not take this method."
    INVALID_STATE = "invalid_state", 409, "invalid_request_error", "The job's state does not allow this verb."
    TOO_LARGE = "request_too_large", 413, "invalid_request_error", "The body or the file is larger than allowed."
    TOO_MANY_QUEUED_JOBS = (
        "too_many_queued_jobs",
        429,
        "rate_limit_error",
        "So many jobs of the project wait already; come again when one has started.",
    )
    INTERNAL = "internal_error", 500, "server_error", "A fault of the platform; the logs hold it under the request id."
    UNAVAILABLE = "unavailable", 503, "server_error", "A server that the API needs did not answer; try again."
    ENGINE_UNAVAILABLE = "engine_unavailable", 503, "server_error", "No engine can answer for this model now."


class ApiError(LuthierError):
    """An answer that is an error. `message` is for people, `param` names the parameter it is about."""

    def __init__(
        self,
        error: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        return self.error.status

    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.error.type, self.param, self.error.code)


class PassedOnError(LuthierError):
    """An error of an engine that is the client's business: passed on as it came."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message")))
        self.status = status
        self.headers: dict[str, str] = {}
        self._error = error

    def body(self) -> dict[str, Any]:
        error = self._error
        kind = str(error.get("type") or "invalid_request_error")
        return error_body(str(error.get("message") or ""), kind, error.get("param"), error.get("code"))


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The OpenAI error envelope; all four keys are always there."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_cursor(what: str) -> ApiError:
    """`after` names no item that the list could hold."""
    return ApiError(ErrorCode.INVALID_CURSOR, f"after must be the id of {what}.", param="after")


def not_found(what: str, thing_id: str) -> ApiError:
    """The one answer for what does not exist and for what belongs to others."""
    return ApiError(ErrorCode.NOT_FOUND, f"No such {what}: {thing_id[:200]}", param="id")
