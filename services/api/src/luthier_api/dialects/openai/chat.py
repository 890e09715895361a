"""`/v1/chat/completions`."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.response import Stream

from luthier_api.answers import event_stream, while_connected
from luthier_api.around.idempotency import FORGOTTEN
from luthier_api.deps import AnyRequest, Services
from luthier_api.domain import Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.engines import BROKE_OFF
from luthier_api.services.models import Served
from luthier_api.settings import MIB
from luthier_api.wire.chat import ChatCompletion, chat_completion
from luthier_common.kit.generation import EngineAwayError

MAX_BODY_BYTES = 8 * MIB
PASSED_ON = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"),
        *("top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "n"),
    }
)
"""Parameters that are honoured, or refused with a value that cannot be."""
MAX_CHOICES = 8
MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "refusal", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"}
)
TEXT_KEYS = frozenset({"type", "text"})
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "metadata": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    **dict.fromkeys(("audio", "moderation", "prediction", "web_search_options"), ()),
    **dict.fromkeys(("prompt_cache_options", "prompt_cache_retention"), ()),
}
"""Parameters that are not honoured, with the values that ask for nothing."""
LABELS = frozenset({"user", "safety_identifier", "prompt_cache_key"})
"""Parameters that name the caller's own end user and change no answer."""


class ChatController(Controller):
    path = "/chat/completions"
    tags = ("Chat",)

    @post(
        operation="create_chat_completion",
        summary="Let a model answer",
        scope=Scope.INFERENCE,
        answer=FORGOTTEN,
        status_code=200,
        request_max_body_size=MAX_BODY_BYTES,
    )
    async def create(
        self,
        request: AnyRequest,
        data: JSONBody[dict[str, Any]],
        services: NamedDependency[Services],
    ) -> ChatCompletion | Stream:
        asked = read_chat(data)
        models, engines = services.models, services.engines
        served = await models.resolve(asked["model"])
        body = engine_body(asked, served, models.project)
        if asked.get("stream"):
            chunks = await while_connected(request, engines.stream(served, body))
            return event_stream(chunks)
        answers = engines.complete_many(served, one_each(body))
        return chat_completion(await while_connected(request, answers))

    @post(
        "/stream",
        operation="stream_chat_completion",
        summary="Let a model answer in named events: message, then done or error",
        scope=Scope.INFERENCE,
        status_code=200,
        media_type="text/event-stream",
        request_max_body_size=MAX_BODY_BYTES,
    )
    async def stream(
        self,
        request: AnyRequest,
        data: JSONBody[dict[str, Any]],
        services: NamedDependency[Services],
    ) -> Stream:
        asked = read_chat({**data, "stream": True})
        models, engines = services.models, services.engines
        served = await models.resolve(asked["model"])
        chunks = engines.chunks(served, engine_body(asked, served, models.project))
        return event_stream(_named_events(await while_connected(request, chunks)))


async def _named_events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    """The events that the MKA1 client expects; its last chunk always counts the tokens."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                told = {name: value for name, value in chunk.items() if value is not None}
                yield f"event: message\ndata: {json.dumps(told)}\n\n".encode()
            yield b"event: done\ndata: [DONE]\n\n"
        except EngineAwayError:
            yield f"event: error\ndata: {BROKE_OFF}\n\n".encode()


def read_chat(data: dict[str, Any]) -> dict[str, Any]:
    """The parameters for an engine; every other one is refused by name unless it asks for nothing."""
    kept: dict[str, Any] = {}
    for name, value in data.items():
        if value is None or (name in NEUTRAL and value in NEUTRAL[name]):
            continue
        if name in PASSED_ON:
            kept[name] = value
        elif name in NEUTRAL:
            message = f"{name} is not supported with this value."
            raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=name)
        elif name not in LABELS:
            message = f"Unrecognized request argument supplied: {name[:100]}"
            raise ApiError(ErrorCode.UNKNOWN_PARAMETER, message, param=name[:100])
    for name, kind in (("model", str), ("messages", list)):
        if name not in kept:
            raise ApiError(ErrorCode.MISSING_PARAMETER, f"Missing required parameter: '{name}'.", param=name)
        if not isinstance(kept[name], kind):
            raise ApiError(ErrorCode.INVALID_VALUE, f"{name} has the wrong type.", param=name)
    _check_messages(kept["messages"])
    _check_choices(kept)
    return kept


def _check_messages(messages: list[Any]) -> None:
    """What no row to train on may hold either is refused by name, unless it is empty; the engine checks the rest."""
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        place = f"messages[{index}]"
        _check_keys(message, MESSAGE_KEYS, place)
        content = message.get("content")
        refusal = message.get("refusal") if message.get("role") == "assistant" else None
        if content is None and not (refusal or message.get("tool_calls")):
            param = f"{place}.content"
            raise ApiError(ErrorCode.MISSING_PARAMETER, f"Missing required parameter: '{param}'.", param=param)
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") == "text":
                _check_keys(part, TEXT_KEYS, f"{place}.content[{number}]")


def _check_keys(given: dict[str, Any], known: frozenset[str], place: str) -> None:
    for key, value in given.items():
        if key not in known and value not in (None, "", [], {}):
            param = f"{place}.{key[:100]}"
            raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, f"{param} is not supported.", param=param)


def _check_choices(kept: dict[str, Any]) -> None:
    streamed, n = kept.get("stream", False), kept.get("n", 1)
    if isinstance(kept.get("seed"), bool):
        raise ApiError(ErrorCode.INVALID_VALUE, "seed must be a whole number.", param="seed")
    if not isinstance(streamed, bool):
        raise ApiError(ErrorCode.INVALID_VALUE, "stream must be true or false.", param="stream")
    if "stream_options" in kept and not streamed:
        message = "stream_options is only allowed with stream."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="stream_options")
    if isinstance(options := kept.get("stream_options"), dict) and "include_obfuscation" in options:
        if options["include_obfuscation"]:
            param = "stream_options.include_obfuscation"
            raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, f"{param} is not supported.", param=param)
        kept["stream_options"] = {name: value for name, value in options.items() if name != "include_obfuscation"}
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_CHOICES:
        raise ApiError(ErrorCode.INVALID_VALUE, f"n must be a whole number from 1 to {MAX_CHOICES}.", param="n")
    if streamed and n > 1:
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, "A streamed answer has one choice: leave n out.", param="n")


def one_each(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """A body for every choice; with a seed each choice has its own, so that the same request gives the same choices."""
    body = {name: value for name, value in asked.items() if name != "n"}
    num_choices, seed = asked.get("n", 1), asked.get("seed")
    if not isinstance(seed, int):
        return [body] * num_choices
    return [{**body, "seed": seed + index} for index in range(num_choices)]


def engine_body(asked: dict[str, Any], served: Served, project: str) -> dict[str, Any]:
    return asked | {"base": served.base, "adapter": served.adapter, "project": project}
