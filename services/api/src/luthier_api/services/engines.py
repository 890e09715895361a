"""Which engine answers: live ones that serve the base, in an order that keeps a model on the same engine."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

from luthier_api.errors import ApiError, ErrorCode, param_of
from luthier_api.services.models import Served
from luthier_api.store import PlatformStore
from luthier_api.turns import Turns
from luthier_common.kit.generation import (
    EngineAwayError,
    EngineOverdueError,
    EngineRefusedError,
    GenerationClient,
    read_chunks,
)

log = logging.getLogger(__name__)
RETRY_AFTER_S = 5
_CODES = {
    "context_length_exceeded": ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    "unsupported_parameter": ErrorCode.UNSUPPORTED_PARAMETER,
    "model_not_found": ErrorCode.MODEL_NOT_FOUND,
    "base_missing": ErrorCode.MODEL_NOT_FOUND,
    "model_files_missing": ErrorCode.MODEL_FILES_MISSING,
}
"""Of an engine's refusals; all others are about a value of the request."""
_FAILED = b'data: {"error":'
BROKE_OFF = "The engine broke off; the answer is not complete."


def in_order(nodes: dict[str, str], name: str) -> list[str]:
    """Addresses by rendezvous hash: each model has its own first engine, and keeps it when others come and go."""
    ranked = sorted(nodes, key=lambda node: hashlib.sha256(f"{node}\0{name}".encode()).digest())
    return [nodes[node] for node in ranked]


class Engines:
    """Asks one engine after another until one answers. Each answer takes one of the key's turns."""

    def __init__(self, store: PlatformStore, client: GenerationClient, turns: Turns, key_id: str) -> None:
        self._store = store
        self._client = client
        self._turns = turns
        self._key_id = key_id

    async def complete(self, served: Served, body: dict[str, Any]) -> dict[str, Any]:
        with self._turn():
            for address in await self._addresses(served):
                try:
                    return await self._client.complete(address, body)
                except EngineAwayError as error:
                    _pass_over(served, address, error)
                except EngineRefusedError as error:
                    raise _passed_on(error) from error
            raise _no_engine(served)

    async def complete_many(self, served: Served, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """All answers, made side by side; the first failure ends the others."""
        tasks = [asyncio.create_task(self.complete(served, body)) for body in bodies]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(self, served: Served, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The event stream of the first engine that begins to answer."""
        stream = _closing(*await self._begin(served, body))
        await anext(stream)
        return stream

    async def chunks(self, served: Served, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The pieces of the first engine that begins to answer; EngineAwayError when it breaks off."""
        asked = {**body, "stream_options": {"include_usage": True}}
        chunks = _parsed(*await self._begin(served, asked))
        await anext(chunks)
        return chunks

    async def _begin(self, served: Served, body: dict[str, Any]) -> tuple[AsyncExitStack, AsyncIterator[bytes]]:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._turn())
            for address in await self._addresses(served):
                try:
                    chunks = await stack.enter_async_context(self._client.stream(address, body))
                    return stack.pop_all(), chunks
                except EngineAwayError as error:
                    _pass_over(served, address, error)
                except EngineRefusedError as error:
                    raise _passed_on(error) from error
            raise _no_engine(served)

    def _turn(self) -> AbstractContextManager[None]:
        headers = {"retry-after": str(RETRY_AFTER_S)}
        code = ErrorCode.TOO_MANY_GENERATIONS
        return self._turns.taken(self._key_id, ApiError(code, code.sentence, headers=headers))

    async def _addresses(self, served: Served) -> list[str]:
        return in_order(await self._store.find_engines(served.base), served.name)


async def _closing(stack: AsyncExitStack, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A client that leaves ends the engine's work too: even before the first piece, which is empty for that."""
    async with stack:
        yield b""
        rest = b""
        try:
            async for chunk in chunks:
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    if event.startswith(_FAILED):
                        raise EngineAwayError("it failed within the answer")
                    yield event + b"\n\n"
        except EngineAwayError as error:
            log.warning("an answer broke off: %s", error)
            broken = ApiError(ErrorCode.ENGINE_UNAVAILABLE, BROKE_OFF)
            yield f"data: {json.dumps(broken.body())}\n\n".encode()


async def _parsed(stack: AsyncExitStack, chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any], None]:
    async with stack:
        yield {}
        async for chunk in read_chunks(chunks):
            yield chunk


def _pass_over(served: Served, address: str, error: EngineAwayError) -> None:
    """On to the next engine; what it would only meet again is not sent on."""
    if isinstance(error, EngineOverdueError):
        raise _no_engine(served) from error
    log.info("an engine is passed over: %s", error, extra={"address": address})


def _passed_on(error: EngineRefusedError) -> ApiError:
    """What an engine refuses, by a code of this API: its own codes tell more than clients are to rely on."""
    is_ours = error.status >= 500 or error.status == 401
    code = ErrorCode.INTERNAL if is_ours else _CODES.get(str(error.error.get("code")), ErrorCode.INVALID_VALUE)
    if code is ErrorCode.INTERNAL:
        log.error("an engine refuses: %s", error.error.get("code"))
        return ApiError(code, "The engine could not answer this request.")
    param = error.error.get("param")
    return ApiError(code, str(error.error.get("message") or ""), param=param_of(str(param)) if param else None)


def _no_engine(served: Served) -> ApiError:
    headers = {"retry-after": str(RETRY_AFTER_S)}
    message = f"No engine can answer for {served.name} now; try again."
    return ApiError(ErrorCode.ENGINE_UNAVAILABLE, message, headers=headers)
