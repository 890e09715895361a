"""What `POST /v1/responses` may say, and what it means. Pure."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, StrictBool, StrictStr

from luthier_api.dialects.openai.fields import Metadata, Strict, number
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.responses import WantedResponse
from luthier_api.wire.responses import output_part
from luthier_common.kit.mongo import Doc

MAX_TOKENS = 2**31
MAX_TOOL_CALLS = 2**31
MAX_LABEL = 512
MAX_PARTS = 20_000
"""Of all items together: what is kept of a request must fit one document."""
_ROLES = ("user", "assistant", "system", "developer")
_ITEM_KEYS = frozenset({"type", "role", "content", "id", "status", "phase"})
_PART_KEYS = frozenset({"type", "text", "annotations", "logprobs"})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("access_programs", "audio", "chat_template_kwargs", "context_management", "conversation"), ()),
    **dict.fromkeys(
        ("do_sample", "extra_body", "fallback_models", "image", "min_p", "moderation", "prefill_think"), ()
    ),
    **dict.fromkeys(("prompt", "prompt_cache_options", "prompt_cache_retention", "reasoning"), ()),
    **dict.fromkeys(("repetition_penalty", "top_k", "use_cache", "webhook_secret", "webhook_url"), ()),
    "background": (False,),
    "include": ([],),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "stream_events": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "text": (
        {},
        *(
            {**verbosity, **form}
            for verbosity in ({}, {"verbosity": "medium"})
            for form in ({}, {"format": {"type": "text"}})
        ),
    ),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Parameters that are not honoured, with the values that ask for nothing; null asks for nothing anywhere."""


def _input(value: Any) -> str | list[dict[str, Any]]:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        return value
    raise ValueError("must be a text, or a list of at least one item")


def _stop(value: Any) -> list[str] | None:
    texts = [value] if isinstance(value, str) else value
    if texts is None or (isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)):
        return texts or None
    raise ValueError("must be a text or a list of texts")


Label = Annotated[StrictStr, Field(max_length=MAX_LABEL)] | None
Penalty = Annotated[float | None, number(-2, 2)]


class CreateResponse(Strict):
    """The body of a create. What has the type object, null or anything is refused unless it asks for nothing."""

    model: StrictStr
    input: Annotated[str | list[dict[str, Any]], PlainValidator(_input)]
    instructions: StrictStr | None = None
    max_output_tokens: Annotated[int | None, number(1, MAX_TOKENS, whole=True)] = None
    max_tool_calls: Annotated[int | None, number(1, MAX_TOOL_CALLS, whole=True)] = None
    temperature: Annotated[float | None, number(0, 2)] = None
    top_p: Annotated[float | None, number(0, 1)] = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    stop: Annotated[str | list[str] | None, PlainValidator(_stop)] = None
    metadata: Metadata = None
    previous_response_id: StrictStr | None = None
    store: StrictBool | None = None
    stream: StrictBool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: StrictBool | None = None
    user: Label = None
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    access_programs: Any = None
    audio: Any = None
    background: Any = None
    chat_template_kwargs: Any = None
    context_management: Any = None
    conversation: Any = None
    do_sample: Any = None
    extra_body: Any = None
    fallback_models: Any = None
    image: Any = None
    include: Any = None
    min_p: Any = None
    modalities: Any = None
    moderation: Any = None
    prefill_think: Any = None
    prompt: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning: Any = None
    repetition_penalty: Any = None
    service_tier: Any = None
    stream_events: Any = None
    stream_options: Any = None
    text: Any = None
    tools: Any = None
    top_k: Any = None
    top_logprobs: Any = None
    use_cache: Any = None
    webhook_secret: Any = None
    webhook_url: Any = None


def wanted_response(data: CreateResponse) -> WantedResponse:
    """What the request asks for; raises ApiError naming what cannot be honoured."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(data, name)
        if value is not None and value not in neutral:
            raise _unsupported(f"{name} is not supported with this value.", name)
    sampling = {
        "max_completion_tokens": data.max_output_tokens,
        "temperature": data.temperature,
        "top_p": data.top_p,
        "frequency_penalty": data.frequency_penalty,
        "presence_penalty": data.presence_penalty,
        "stop": data.stop,
    }
    return WantedResponse(
        model=data.model,
        items=_items(data.input),
        sampling={name: value for name, value in sampling.items() if value is not None},
        asked=_asked(data),
        metadata=data.metadata or {},
        previous=data.previous_response_id,
    )


def _asked(data: CreateResponse) -> Doc:
    """What the response repeats, with the values that hold where none was given."""

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return {
        "instructions": data.instructions,
        "max_output_tokens": data.max_output_tokens,
        "max_tool_calls": data.max_tool_calls,
        "temperature": given(data.temperature, 1.0),
        "top_p": given(data.top_p, 1.0),
        "frequency_penalty": given(data.frequency_penalty, 0.0),
        "presence_penalty": given(data.presence_penalty, 0.0),
        "store": given(data.store, True),
        "truncation": given(data.truncation, "disabled"),
        "tool_choice": given(data.tool_choice, "auto"),
        "parallel_tool_calls": given(data.parallel_tool_calls, True),
        "user": data.user,
        "safety_identifier": data.safety_identifier,
        "prompt_cache_key": data.prompt_cache_key,
    }


def _items(given: str | list[dict[str, Any]]) -> list[Doc]:
    if isinstance(given, str):
        return [_stored("user", [given])]
    num_parts = sum(len(item["content"]) if isinstance(item.get("content"), list) else 1 for item in given)
    if max(len(given), num_parts) > MAX_PARTS:
        raise _invalid(f"The input may have at most {MAX_PARTS} items and parts.", "input")
    return [_item(item, f"input[{index}]") for index, item in enumerate(given)]


def _item(item: Mapping[str, Any], place: str) -> Doc:
    """A message; ids and states of messages that clients send back say nothing new."""
    kind = item.get("type", "message")
    if kind != "message":
        raise _unsupported(f"Items of the type {str(kind)[:100]} are not supported; use message.", f"{place}.type")
    _refuse_others(item, _ITEM_KEYS, place)
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise _invalid(f"The role must be one of {', '.join(_ROLES)}.", f"{place}.role")
    if isinstance(content, str):
        return _stored(role, [content])
    if not isinstance(content, list):
        raise _invalid("The content must be a text or a list of parts.", f"{place}.content")
    return _stored(role, [_text(part, f"{place}.content[{index}]") for index, part in enumerate(content)])


def _text(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise _invalid("A part must be an object.", place)
    kind = part.get("type")
    if kind not in ("input_text", "output_text"):
        raise _unsupported(f"Parts of the type {str(kind)[:100]} are not supported; use input_text.", f"{place}.type")
    _refuse_others(part, _PART_KEYS, place)
    for name in ("annotations", "logprobs"):
        if part.get(name):
            raise _unsupported(f"{name} are not supported.", f"{place}.{name}")
    if not isinstance(part.get("text"), str):
        raise _invalid("The text must be a string.", f"{place}.text")
    return str(part["text"])


def _refuse_others(given: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            param = f"{place}.{name[:100]}"
            raise ApiError(ErrorCode.UNKNOWN_PARAMETER, f"Unrecognized request argument supplied: {param}", param=param)


def _stored(role: str, texts: list[str]) -> Doc:
    """The message as it is kept and shown."""
    if role == "assistant":
        content: list[Any] = [output_part(text) for text in texts]
    else:
        content = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "role": role, "status": "completed", "content": content}


def _unsupported(message: str, param: str) -> ApiError:
    return ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param)


def _invalid(message: str, param: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_VALUE, message, param=param)
