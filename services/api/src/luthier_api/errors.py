"""Every error that the API answers with: one table of stable codes, one exception that carries a row of it."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from luthier_common.kit.errors import LuthierError
from luthier_common.kit.mongo import is_outage

NO_RETRY = {"x-should-retry": "false"}
CONFLICT = 409
"""Clients repeat a request that was answered so, unless they are told that it does not help."""
RETRY_HEADERS = {CONFLICT: NO_RETRY, 429: {"retry-after": "1"}, 503: {"retry-after": "1"}}
"""What every answer with such a status says of trying again, unless it knows better."""


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
    UNSUPPORTED_METHOD = (
        "unsupported_method",
        400,
        "invalid_request_error",
        "The method of the job is known and its body is right, but no trainer has the method yet.",
    )
    CONFLICTING_PARAMETERS = (
        "conflicting_parameters",
        400,
        "invalid_request_error",
        "The same thing was given twice with different values.",
    )
    INVALID_CURSOR = "invalid_cursor", 400, "invalid_request_error", "`after` is no id of an item of this list."
    INVALID_MULTIPART = "invalid_multipart", 400, "invalid_request_error", "The body is no complete multipart form."
    EMPTY_FILE = "empty_file", 400, "invalid_request_error", "The file has no bytes."
    SIZE_MISMATCH = "size_mismatch", 400, "invalid_request_error", "The parts do not make up the announced bytes."
    CHECKSUM_MISMATCH = "checksum_mismatch", 400, "invalid_request_error", "The bytes have another checksum."
    FILE_NOT_FOUND = "file_not_found", 400, "invalid_request_error", "A file that the request names does not exist."
    INVALID_PURPOSE = "invalid_file_purpose", 400, "invalid_request_error", "The file was uploaded for another purpose."
    BASE_NOT_FOUND = "model_not_found", 400, "invalid_request_error", "The model does not exist, or not for this use."
    CONTEXT_LENGTH_EXCEEDED = (
        "context_length_exceeded",
        400,
        "invalid_request_error",
        "The input leaves the model no room to answer: it holds more tokens than the model can see.",
    )
    PREVIOUS_RESPONSE_NOT_FOUND = (
        "previous_response_not_found",
        400,
        "invalid_request_error",
        "The response to go on from, or one before it, does not exist, was deleted or has expired.",
    )
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency_key_reused",
        400,
        "invalid_request_error",
        "The Idempotency-Key was used before with another body.",
    )
    INVALID_API_KEY = "invalid_api_key", 401, "invalid_request_error", "No API key was given, or it is not valid."
    MISSING_SCOPE = "missing_scope", 403, "permission_error", "The API key lacks the scope that the message names."
    BASE_NOT_DELETABLE = "base_model_not_deletable", 403, "permission_error", "Base models cannot be deleted."
    END_USER_REFUSED = (
        "end_user_not_allowed",
        403,
        "permission_error",
        "Organisations are not administrated on behalf of an end user: leave X-On-Behalf-Of out.",
    )
    UNKNOWN_URL = "unknown_url", 404, "invalid_request_error", "There is no such address."
    NOT_FOUND = "not_found", 404, "invalid_request_error", "There is no such thing in this project."
    MODEL_NOT_FOUND = "model_not_found", 404, "invalid_request_error", "There is no such model in this project."
    MODEL_FILES_MISSING = (
        "model_files_missing",
        404,
        "invalid_request_error",
        "The model is known, but its files are not in the object store any more.",
    )
    CHECKPOINT_GONE = "checkpoint_gone", 404, "invalid_request_error", "The checkpoint's files have been removed."
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "invalid_request_error", "The address does not take this method."
    UPLOAD_TIMEOUT = "upload_timeout", 408, "invalid_request_error", "The body took longer to come than it may."
    INVALID_STATE = "invalid_state", 409, "invalid_request_error", "The state of the thing does not allow this verb."
    PROJECT_ARCHIVED = "project_archived", 409, "invalid_request_error", "The project is archived: nothing changes."
    OWN_PROJECT = "own_project", 409, "invalid_request_error", "A key cannot archive the project that it belongs to."
    ALREADY_EXISTS = "already_exists", 409, "invalid_request_error", "There is one with this name or address already."
    IDEMPOTENCY_IN_PROGRESS = (
        "idempotency_in_progress",
        409,
        "invalid_request_error",
        "The first request with this Idempotency-Key still runs; look for what it makes.",
    )
    IDEMPOTENCY_NOT_KEPT = (
        "idempotency_answer_not_kept",
        409,
        "invalid_request_error",
        "The request was done before; its answer held a secret or what a model said, and is not kept.",
    )
    STORAGE_LIMIT = (
        "storage_limit_exceeded",
        403,
        "invalid_request_error",
        "What the project stores takes all the room that it may use; delete files, jobs or models.",
    )
    TOO_LARGE = "request_too_large", 413, "invalid_request_error", "The body or the file is larger than allowed."
    RATE_LIMIT_EXCEEDED = (
        "rate_limit_exceeded",
        429,
        "rate_limit_error",
        "The key has sent its requests of this minute; `retry-after` says when the next begins.",
    )
    TOO_MANY_FAILED_KEYS = (
        "too_many_failed_keys",
        429,
        "rate_limit_error",
        "Too many requests with keys that are not valid came from this address; `retry-after` says how long to wait.",
    )
    TOO_MANY_QUEUED_JOBS = (
        "too_many_queued_jobs",
        429,
        "rate_limit_error",
        "So many jobs of the project wait already; come again when one has started.",
    )
    TOO_MANY_GENERATIONS = (
        "too_many_generations",
        429,
        "rate_limit_error",
        "As many answers are made for the API key as it may have at a time; come again when one has ended.",
    )
    TOO_MANY_GRADINGS = (
        "too_many_gradings",
        429,
        "rate_limit_error",
        "A grader of the project runs, or too many of others wait; come again when it has ended.",
    )
    TOO_MANY_DOWNLOADS = (
        "too_many_downloads",
        429,
        "rate_limit_error",
        "As many files are read as the API key, its organisation, or all may at a time; come again when one has ended.",
    )
    TOO_MANY_UPLOADS = (
        "too_many_uploads",
        429,
        "rate_limit_error",
        "As many uploads come in as the API key, its organisation, or all may have at a time, and none has ended.",
    )
    TOO_MANY_STREAMS = "too_many_streams", 429, "rate_limit_error", "The API key follows as many jobs as it may."
    CLIENT_GONE = (
        "client_closed_request",
        499,
        "invalid_request_error",
        "The client hung up before its answer: only the audit log shows it.",
    )
    INTERNAL = "internal_error", 500, "server_error", "A fault of the platform; the logs hold it under the request id."
    UNAVAILABLE = "unavailable", 503, "server_error", "A server that the API needs did not answer; try again."
    STORAGE_FULL = "storage_full", 503, "server_error", "The disk for files is full; the operator must make room."
    GRADING_TIMEOUT = "grading_timeout", 503, "server_error", "The grader took longer than one may take here."
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
        self.headers = {**RETRY_HEADERS.get(error.status, {}), **(headers or {})}

    @property
    def status(self) -> int:
        return self.error.status

    def naming(self, params: Mapping[str, str]) -> "ApiError":
        """The same error, with the parameter under the name that the client used."""
        param = None if self.param is None else params.get(self.param, self.param)
        return ApiError(self.error, self.message, param=param, headers=self.headers)

    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.error.type, self.param, self.error.code)


_INDEX = re.compile(r"\.(\d+)(?=\.|$)")


def param_of(path: str) -> str:
    """A parameter's path as clients write it: `messages[0].content`."""
    return _INDEX.sub(r"[\1]", path)


def status_of(error: Exception) -> int:
    """The status of the answer that an error becomes."""
    if isinstance(error, ApiError):
        return error.status
    return ErrorCode.UNAVAILABLE.status if is_outage(error) else ErrorCode.INTERNAL.status


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The OpenAI error envelope; all four keys are always there."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_cursor(what: str) -> ApiError:
    """`after` names no item that the list could hold."""
    return ApiError(ErrorCode.INVALID_CURSOR, f"after must be the id of {what}.", param="after")


def not_found(what: str, thing_id: str) -> ApiError:
    """The one answer for what does not exist and for what belongs to others."""
    return ApiError(ErrorCode.NOT_FOUND, f"No such {what}: {thing_id[:200]}", param="id")
