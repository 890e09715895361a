"""A room as a process of its own over the servers of a test."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from luthier_stack.part import tied_to_this_process

STOPPED_WITHIN_S = 20.0
"""More than a room allows itself."""


@asynccontextmanager
async def room_process(
    room: str, mongo_url: str, database_name: str, kafka_url: str, env: dict[str, str]
) -> AsyncIterator[None]:
    """`python -m luthier_ROOM` until the block ends; then it is asked to stop, and must end in order."""
    servers = {"LUTHIER_MONGO_URL": mongo_url, "LUTHIER_MONGO_DATABASE": database_name, "LUTHIER_KAFKA_URL": kafka_url}
    command = tied_to_this_process((sys.executable, "-m", f"luthier_{room}"))
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | servers | env)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), STOPPED_WITHIN_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
