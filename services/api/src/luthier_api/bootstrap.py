"""Opens what the api room needs, starts its loops and serves the API until the room stops."""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import uvicorn
from litestar import Litestar

from luthier_api.app import build_app
from luthier_api.consumers import start
from luthier_api.deps import Process
from luthier_api.first_key import ensure_admin_key, read_pepper
from luthier_api.keys import KeyRing
from luthier_api.protocol import BoundedHttp
from luthier_api.services.readiness import Readiness
from luthier_api.settings import ApiSettings
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.generation import GenerationClient
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.room import Room
from luthier_common.kit.servers import open_database, open_store
from luthier_common.kit.stream import Copies, Reader, Writer

log = logging.getLogger(__name__)
LAST_WORDS_S = 1
"""What streams have to say that they broke off."""
CLOSING_S = 6 - LAST_WORDS_S
"""What is left of the time to stop for clients and telemetry, when no request is answered any more."""


class Closable(Protocol):
    async def close(self) -> None: ...


_T = TypeVar("_T", bound=Closable)


async def main(room: Room) -> None:
    """The room's life until it stops."""
    settings = ApiSettings()
    instance = f"api-{socket.gethostname()}-{secrets.token_hex(4)}"
    process = await open_process(room, settings)
    if await ensure_admin_key(process.keys, process.db, settings.home / "admin-key"):
        log.info("the first API key was written to the file admin-key in the home directory")
    access = kafka_access(settings)
    for name, check in Readiness(process.db, process.objects, settings, access).checks().items():
        room.health.require(name, check)
    copies = Copies(settings.topic_replication, settings.topic_min_insync)
    writer = await room.enter("writer", _closed_after(Writer(settings.kafka_url, access, copies=copies)))
    reader = await room.enter("reader", _closed_after(Reader(settings.kafka_url, access)))
    await start(room, process, writer, reader, instance)
    answering_s = settings.stop_grace_s + LAST_WORDS_S
    room.stop_after_s = max(room.stop_after_s, answering_s + CLOSING_S)
    server = _make_server(process, build_app(process))
    room.health.require("http", server.check)
    room.spawn("http", serve(room, process, server), grace_s=answering_s + LAST_WORDS_S)


async def open_process(room: Room, settings: ApiSettings) -> Process:
    """Open the clients that requests need; the room closes them."""
    db = await room.enter("mongo", open_database(settings, timeout_s=10))
    pepper = settings.pepper.get_secret_value().encode() if settings.pepper else read_pepper(settings.home)
    return Process(
        settings=settings,
        db=db,
        objects=await room.enter("objects", open_store(settings)),
        clock=SystemClock(),
        keys=KeyRing(db, pepper, cache_s=settings.key_cache_s),
        generation=await room.enter(
            "generation",
            GenerationClient(settings.internal_token, read_timeout_s=settings.engine_read_timeout_s),
        ),
        health=room.health,
    )


class _Server(uvicorn.Server):
    """Signals belong to the room."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def check(self) -> str | None:
        """For readiness: it is later than all else that the room opens."""
        return None if self.started else "it does not listen yet"


def _make_server(process: Process, app: Litestar) -> _Server:
    settings = process.settings
    config = uvicorn.Config(
        app,
        http=_protocol(process),
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.stop_grace_s + LAST_WORDS_S,
    )
    return _Server(config)


async def serve(room: Room, process: Process, server: _Server) -> None:
    """Serve HTTP until the room stops.

    What is being answered then has a grace. After it answers that engines still make break off, and say so; all else,
    such as a file on its way in or out, is cut.
    """
    settings = process.settings
    sockets = [_shared_socket(settings.host, settings.port)] if settings.share_port else None
    serving = asyncio.create_task(server.serve(sockets), name="uvicorn")
    stopping = asyncio.create_task(room.stopping.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    process.followers.stop()
    server.should_exit = True
    await asyncio.wait({serving}, timeout=settings.stop_grace_s)
    await process.generation.break_off()
    await serving
    if not room.stopping.is_set():
        raise OSError(f"the API cannot listen on {settings.host}:{settings.port}")


def _shared_socket(host: str, port: int) -> socket.socket:
    """One that further processes of this user may listen on too."""
    [(family, kind, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listening = socket.socket(family, kind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(address)
    return listening


def _protocol(process: Process) -> type[asyncio.Protocol]:
    """HTTP that tells when a connection has ended: some clients then send their last request again."""

    class Watched(BoundedHttp):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            process.around.connections.lost(self.client)

    return Watched


@asynccontextmanager
async def _closed_after(client: _T) -> AsyncIterator[_T]:
    try:
        yield client
    finally:
        await client.close()
