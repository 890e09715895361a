"""A journal of relays and projectors over a broker, as every api process runs them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from luthier_common.journal.projector import Projector, run_projector
from luthier_common.journal.relay import Relay, run_relay
from luthier_common.journal.wake import Wake, wake_on_change
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Reader, Writer, ensure_topics

Journal = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def journal(db: Database) -> Journal:
    @asynccontextmanager
    async def run(
        url: str, owner: str = "one", source: str = "luthier/test/1", writer: Writer | None = None
    ) -> AsyncIterator[None]:
        await ensure_topics(url)
        clock, stopping, wake = SystemClock(), asyncio.Event(), Wake()
        writer, reader = writer or Writer(url), Reader(url)
        relay = Relay(db, writer, owner=owner, source=source, clock=clock)
        projector = Projector(db, reader, owner=owner, clock=clock, source=source, trimmed=relay.forget)
        tasks = [
            asyncio.create_task(run_relay(relay, wake, stopping, lambda: None)),
            asyncio.create_task(run_projector(projector, stopping, lambda: None)),
            asyncio.create_task(wake_on_change(db, wake)),
        ]
        try:
            yield
        finally:
            stopping.set()
            wake.set()
            tasks[2].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
            await writer.close()
            await reader.close()

    return run
