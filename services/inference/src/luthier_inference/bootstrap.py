"""Puts the room together; the only place that opens anything."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from litestar import Litestar

from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.mongo import Database, ping
from luthier_common.kit.room import STOP_AFTER_S, TRANSIENT_ERRORS, Room
from luthier_common.kit.servers import open_database, open_store
from luthier_inference.artifacts import ArtifactCache, BaseCache
from luthier_inference.consumers import make_on_fact
from luthier_inference.controllers import build_app
from luthier_inference.engines import EnginePool
from luthier_inference.node import Node
from luthier_inference.serving import Serving
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore
from luthier_inference.verification import Verifier
from luthier_inference.watch import EngineWatch

# Fetching and loading a large base may rightly take this long; who ended it would only have it begin again.
_SLOW_WORK_S = 2 * 3600.0
_FORGET_EVERY_S = 30.0
# Whatever else they are at when the room stops is begun again by the next one.
_LOOP_GRACE_S = 5.0
# What is left of the time to stop when the answers have ended, for closing everything.
_CLOSING_S = 9.0


async def main(room: Room) -> None:
    """Serves until the room stops."""
    settings = InferenceSettings()
    room.stop_after_s = max(STOP_AFTER_S, settings.engine_drain_s + _CLOSING_S)
    db = await room.enter("mongo", open_database(settings))
    objects = await room.enter("objects", open_store(settings))
    cache = settings.home / "cache"
    store = InferenceStore(db, settings.inference_node)
    clock = SystemClock()
    bases = BaseCache(objects, cache / "bases", settings.base_cache_dirs)
    pool = EnginePool(bases.fetch, settings, clock)
    artifacts = ArtifactCache(objects, cache / "adapters", settings.adapter_cache_dirs)
    serving = Serving(store, pool, artifacts, settings)
    verifier = Verifier(store, serving, artifacts, settings, clock)
    watch = EngineWatch(pool, look_every_s=settings.tick_s, hung_after_s=settings.engine_hung_after_s)
    wake_verification = asyncio.Event()
    broker = build_broker(settings.kafka_url, "inference", kafka_access(settings))
    hear(broker, [TOPICS[Kind.JOB]], make_on_fact(wake_verification))
    await room.enter("broker", listening(broker))
    app = build_app(serving, settings.internal_token.get_secret_value())
    async with serve(app, settings.inference_host, settings.inference_port) as port:
        address = settings.inference_address or f"http://{settings.inference_host}:{port}"
        node = Node(store, serving, pool, address, settings)
        room.health.require("mongo", lambda: _ping(db))
        room.health.require("engine", node.check)
        load = room.every(settings.tick_s, node.load_default, stale_after_s=_SLOW_WORK_S)
        look = room.every(settings.tick_s, verifier.look, wake_verification, stale_after_s=_SLOW_WORK_S)
        room.spawn("renew", room.every(settings.renew_s, node.renew), grace_s=_LOOP_GRACE_S)
        room.spawn("load", load, grace_s=_LOOP_GRACE_S)
        room.spawn("verify", look, grace_s=_LOOP_GRACE_S)
        room.spawn("watch", room.every(settings.tick_s, watch.look), grace_s=_LOOP_GRACE_S)
        room.spawn("forget", room.every(_FORGET_EVERY_S, serving.drop_deleted), grace_s=_LOOP_GRACE_S)
        room.spawn("drain", node.drain(room.stopping), grace_s=settings.engine_drain_s + 1)
        await room.until_stopped()
        with suppress(*TRANSIENT_ERRORS):
            await node.leave()
    await pool.close()


async def _ping(db: Database) -> str | None:
    await ping(db)
    return None


class _Server(uvicorn.Server):
    """Signals belong to the room."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve(app: Litestar, host: str, port: int) -> AsyncIterator[int]:
    """Serves the app until the block ends; yields its port. OSError when the port is taken."""
    listener = socket.create_server((host, port))
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        with suppress(TimeoutError):
            await asyncio.wait_for(task, 2)
        listener.close()
