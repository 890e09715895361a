"""The embedded broker: Tansu, speaking the Kafka protocol, in memory only.

It forgets everything when it stops. That is harmless: the journal in MongoDB is the truth and publishes again.
Tansu reads its address, its storage and its telemetry target from the environment, so it gets flags and an empty one.
"""

import asyncio
import contextlib
import struct
from pathlib import Path

from luthier_stack.ports import find_free_ports

_API_VERSIONS_REQUEST = struct.pack(">ihhih", 10, 18, 0, 1, -1)
_ANSWER_WITHIN_S = 2.0


class EmbeddedBroker:
    """One Tansu process: how to start it, how to see that it works, how to reach it."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._port = find_free_ports(1)[0]

    @property
    def url(self) -> str:
        """The bootstrap address."""
        return f"127.0.0.1:{self._port}"

    @property
    def command(self) -> tuple[str, ...]:
        """The command line."""
        address = f"tcp://127.0.0.1:{self._port}"
        return (
            *(str(self._binary), "--cluster-id", "luthier", "--storage-engine", "memory://tansu/"),
            *("--listener-url", address, "--advertised-listener-url", address),
        )

    async def is_alive(self) -> bool:
        """Whether the broker answers the first request that every Kafka client makes."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(_API_VERSIONS_REQUEST)
                    await reader.readexactly(8)
                    return True
                finally:
                    writer.close()
        return False
