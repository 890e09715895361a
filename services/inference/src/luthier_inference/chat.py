"""The internal chat completion: what a body may say, and the shapes of answers. OpenAI's names and meanings, plus
`base`, `adapter` and `project`. Every parameter is honoured or refused by name. Pure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from luthier_common.kit.errors import LuthierError
from luthier_inference.domain import MAX_STOPS, FinishReason, Sampling

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class InvalidRequestError(LuthierError):
    """The body cannot be honoured; `param` names the parameter."""

    def __init__(self, code: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AdapterRef(_Body):
    """Where the adapter of a tuned model lies, and the sha256 of its manifest.

    Only the API makes it; what a newer API adds is no error, so that the two are upgraded in any order.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    model_id: str = Field(pattern="^[A-Za-z0-9_-]+$")
    key: str
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    base_digest: str | None = None
    """The bundle that it was trained on; None: the base as it is now."""

    @property
    def name(self) -> str:
        """Its name in the engine and on disk: two versions of a model never share one."""
        return f"{self.model_id}@{self.manifest_sha256}"


class StreamOptions(_Body):
    include_usage: bool | None = None


def _list_stops(stop: object) -> object:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop


class ChatBody(_Body):
    """The parameters that are honoured. Null means: not given."""

    base: str
    adapter: AdapterRef | None = None
    project: str | None = None
    model: str | None = None
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: Annotated[
        tuple[Stop, ...],
        BeforeValidator(_list_stops),
        Field(max_length=MAX_STOPS),
    ] = ()

    @model_validator(mode="after")
    def _check_limits(self) -> "ChatBody":
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def sampling(self) -> Sampling:
        def given(value: float | None, default: float) -> float:
            return default if value is None else value

        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=given(self.temperature, 1.0),
            top_p=given(self.top_p, 1.0),
            frequency_penalty=given(self.frequency_penalty, 0.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            seed=self.seed,
            stop=self.stop,
        )


# Parameters that change nothing when they have one of these values, as if they were not given.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
}


def parse_chat(body: object) -> ChatBody:
    """Raises `InvalidRequestError` naming the first parameter that is wrong or cannot be honoured."""
    if not isinstance(body, dict):
        raise InvalidRequestError("invalid_body", "The body must be a JSON object.", None)
    kept = {}
    for name, value in body.items():
        if name in ChatBody.model_fields:
            kept[name] = value
        elif value is not None and value not in _NEUTRAL.get(name, ()):
            raise InvalidRequestError("unsupported_parameter", f"{name} is not supported by this engine.", name)
    try:
        return ChatBody.model_validate(kept)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or "max_tokens"
        raise InvalidRequestError("invalid_value", f"{param}: {first['msg']}", param) from error


@dataclass
class Usage:
    """Tokens of one answer."""

    num_prompt: int
    num_completion: int = 0

    def to_wire(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_completion,
            "total_tokens": self.num_prompt + self.num_completion,
        }


@dataclass(frozen=True)
class Header:
    """What all parts of one answer share."""

    id: str
    model: str
    fingerprint: str
    created: int

    @classmethod
    def new(cls, answer_id: str, model: str, fingerprint: str) -> "Header":
        return cls(answer_id, model, fingerprint, int(time.time()))

    def to_wire(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def completion(header: Header, texts: Sequence[str], reason: FinishReason, usage: Usage) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": "".join(texts), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return header.to_wire("chat.completion") | {"choices": [choice], "usage": usage.to_wire()}


def chunk(
    header: Header, delta: dict[str, Any], reason: FinishReason | None = None, *, null_usage: bool = False
) -> dict[str, Any]:
    """One piece of a streamed answer; with usage asked for, all pieces but the last carry a null one."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    usage: dict[str, Any] = {"usage": None} if null_usage else {}
    return header.to_wire("chat.completion.chunk") | {"choices": [choice]} | usage


def usage_chunk(header: Header, usage: Usage) -> dict[str, Any]:
    """The last piece, when usage was asked for."""
    return header.to_wire("chat.completion.chunk") | {"choices": [], "usage": usage.to_wire()}


_STATUSES = {
    "model_not_found": 404,
    "base_missing": 404,
    "model_files_missing": 404,
    "context_length_exceeded": 400,
    "engine_overloaded": 429,
    "broken_weights": 503,
    "engine_draining": 503,
    "engine_failed": 503,
    "engine_loading": 503,
    "unavailable": 503,
    "object_store_unavailable": 503,
    "unauthorized": 401,
}
_TYPES: dict[int, Literal["invalid_request_error", "rate_limit_error", "server_error", "authentication_error"]] = {
    401: "authentication_error",
    429: "rate_limit_error",
}


def error_to_wire(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and OpenAI envelope. Errors that are not ours say nothing of themselves."""
    code = str(getattr(error, "code", "internal_error"))
    is_request = isinstance(error, InvalidRequestError)
    status = 400 if is_request else _STATUSES.get(code, 500)
    message = str(error) if isinstance(error, LuthierError) else "The engine had an internal error."
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = getattr(error, "param", None)
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}
