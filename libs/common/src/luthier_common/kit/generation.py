"""The one client of the inference room: chat completions from an engine, whole or as a stream of server-sent events.

Every answer is fetched as a stream, so the read timeout bounds an engine's silence and not the length of an answer. An
engine that is busy or away raises `EngineAwayError`: another one may answer, unless it is `EngineOverdueError`. What an
engine refuses raises `EngineRefusedError` with its own words.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from pydantic import SecretStr

from luthier_common.kit.errors import LuthierError, TransientError
from luthier_common.kit.telemetry import current_traceparent

CONNECT_TIMEOUT_S = 2.0
POOL_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 200
MAX_BODY_BYTES = 20 * 1024 * 1024
"""An engine takes no larger body: what the API may send fits."""
_AWAY = (429, 502, 503, 504)


class EngineAwayError(TransientError):
    """The engine did not answer, or has no room; nothing was generated."""

    code = "engine_unavailable"


class EngineOverdueError(EngineAwayError):
    """The engine took the request and said nothing for too long, or there is no connection to spare, or no time: what
    another engine would only meet again."""


class EngineRefusedError(LuthierError):
    """The engine answered with an error that another engine would give too. `error` is the envelope's inside."""

    code = "engine_refused"

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message")))
        self.status = status
        self.error = error


class GenerationClient:
    """Asks engines by their address. One for a process; close it with `async with`."""

    def __init__(
        self, token: SecretStr, *, read_timeout_s: float = 300.0, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        self._token = token
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S, pool=POOL_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=max_connections),
            trust_env=False,
        )

    async def __aenter__(self) -> "GenerationClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def break_off(self) -> None:
        """For a process that ends: every answer that is still being made breaks off, as if its engine had gone."""
        await self._http.aclose()

    async def complete(self, address: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A whole chat completion. `body` is OpenAI-shaped plus `base`, `adapter` and `project`."""
        async with self.stream(address, {**body, "stream_options": {"include_usage": True}}) as chunks:
            return await _assemble(read_chunks(chunks))

    @asynccontextmanager
    async def stream(self, address: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of the event stream. When the block is entered the engine has begun to answer."""
        async with self._open("POST", f"{address}/internal/chat/completions", {**body, "stream": True}) as response:
            yield _bytes(response)

    async def models(self, address: str) -> dict[str, Any]:
        """What the engine serves."""
        async with self._open("GET", f"{address}/internal/models", None) as response:
            return await _read(response)

    @asynccontextmanager
    async def _open(self, method: str, url: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        token = self._token.get_secret_value()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if (trace := current_traceparent()) is not None:
            headers["traceparent"] = trace
        if self._http.is_closed:
            raise EngineOverdueError("this process ends")
        request = self._http.build_request(method, url, json=body, headers=headers)
        try:
            response = await self._http.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _away("the engine does not answer", error) from error
        try:
            if response.status_code != 200:
                raise await _failure(response)
            yield response
        finally:
            await response.aclose()


async def read_chunks(stream: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The pieces of an event stream as objects. EngineAwayError when it ends before its end or says so itself."""
    rest = b""
    async for piece in stream:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not data:
                continue
            if data == b"[DONE]":
                return
            yield _chunk(data)
    raise EngineAwayError("the engine broke off: no end of the answer")


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise EngineAwayError("the engine sent no JSON") from error
    if not isinstance(chunk, dict) or "error" in chunk:
        raise EngineAwayError("the engine broke off: it failed within the answer")
    return chunk


async def _assemble(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The chat completion that the pieces make."""
    head: dict[str, Any] = {}
    texts: list[str] = []
    reason = usage = None
    async for chunk in chunks:
        head = head or {key: value for key, value in chunk.items() if key not in ("choices", "usage", "object")}
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            texts.append(choice["delta"].get("content") or "")
            reason = choice.get("finish_reason") or reason
    if reason is None or usage is None:
        raise EngineAwayError("the engine gave no whole answer")
    message = {"role": "assistant", "content": "".join(texts), "refusal": None}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}]
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage}


async def _read(response: httpx2.Response) -> dict[str, Any]:
    try:
        answer = json.loads(await response.aread())
    except (httpx2.HTTPError, ValueError) as error:
        raise EngineAwayError(f"the engine broke off: {type(error).__name__}") from error
    if not isinstance(answer, dict):
        raise EngineAwayError("the engine gave no object")
    return answer


async def _bytes(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    except httpx2.HTTPError as error:
        raise _away("the engine broke off", error) from error


def _away(what: str, error: httpx2.HTTPError) -> EngineAwayError:
    is_overdue = isinstance(error, httpx2.ReadTimeout | httpx2.PoolTimeout)
    return (EngineOverdueError if is_overdue else EngineAwayError)(f"{what}: {type(error).__name__}")


async def _failure(response: httpx2.Response) -> LuthierError:
    try:
        error = json.loads(await response.aread())["error"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        error = None
    message = str(error.get("message")) if isinstance(error, dict) else f"status {response.status_code}"
    if response.status_code in _AWAY or not isinstance(error, dict):
        return EngineAwayError(message)
    return EngineRefusedError(response.status_code, error)
