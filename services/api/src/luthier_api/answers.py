"""Answers that take long: streamed, and given up when nobody waits for them any more."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from litestar.response import Stream

from luthier_api.deps import AnyRequest
from luthier_api.errors import ApiError, ErrorCode

_T = TypeVar("_T")


def event_stream(chunks: AsyncIterator[bytes]) -> Stream:
    """Server-sent events. The header is set by name: the type of the route's other answer would win."""
    return Stream(chunks, headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})


async def while_connected(request: AnyRequest, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`; a client that leaves ends the engine's work too."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(ErrorCode.CLIENT_GONE, "The client hung up.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _wait_gone(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
