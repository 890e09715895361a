"""A server of ours that speaks the bounded HTTP protocol for any small application."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from luthier_api import protocol


@asynccontextmanager
async def served(app: Callable[[Any, Any, Any], Awaitable[None]], keep_alive_s: float = 5) -> AsyncIterator[int]:
    """Serves the application until the block ends; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=protocol.BoundedHttp, lifespan="off", log_config=None, ws="none")
    config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]  # seconds, whole ones in production
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([listener]))
    yield int(listener.getsockname()[1])
    server.should_exit = True
    await serving
