"""`/v1/chat/completions`."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.response import Stream

from luthier_api.deps import AnyRequest
from luthier_api.domain import Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.engines import Engines
from luthier_api.services.models import ModelService, Served
from luthier_api.settings import MIB
from luthier_api.wire.lists import Wire

MAX_BODY_BYTES = 8 * MIB
PASSED_ON = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"),
        *("top_p", "frequency_penalty", "presence_penalty", "seed", "stop"),
    }
)
"""Parameters that an engine honours or refuses."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
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
        status_code=200,
        request_max_body_size=MAX_BODY_BYTES,
    )
    async def create(
        self,
        request: AnyRequest,
        data: JSONBody[dict[str, Any]],
        models: NamedDependency[ModelService],
        engines: NamedDependency[Engines],
    ) -> Wire | Stream:
        asked = read_chat(data)
        served = await models.resolve(asked["model"])
        body = engine_body(asked, served, models.project)
        if asked.get("stream"):
            chunks = await engines.stream(served, body)
            return Stream(chunks, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        return await _while_connected(request, engines.complete(served, body))


async def _while_connected(request: AnyRequest, work: Coroutine[Any, Any, Wire]) -> Wire:
    """The result of `work`; a client that leaves ends the engine's work too."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(ErrorCode.INVALID_REQUEST, "The client hung up.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _wait_gone(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
    if not isinstance(kept.get("stream", False), bool):
        raise ApiError(ErrorCode.INVALID_VALUE, "stream must be true or false.", param="stream")
    return kept


def engine_body(asked: dict[str, Any], served: Served, project: str) -> dict[str, Any]:
    return asked | {"base": served.base, "adapter": served.adapter, "project": project}
