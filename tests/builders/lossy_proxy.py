"""A TCP proxy before a server that loses answers: by swallowing them, or by cutting the connection before they come."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

Loss = Literal["swallow", "cut"]
CHUNK_BYTES = 65_536


@dataclass
class LossyProxy:
    """Loses the next `num_losses` answers. `swallow` waits for the answer first; `cut` does not: whether the server has
    then read the request, or even answered, is open."""

    port: int = 0
    loss: Loss = "swallow"
    num_losses: int = 0
    num_lost: int = 0

    def lose(self, num_answers: int, loss: Loss = "swallow") -> None:
        self.num_losses, self.loss, self.num_lost = num_answers, loss, 0


@asynccontextmanager
async def lossy_proxy(server_port: int) -> AsyncIterator[LossyProxy]:
    proxy = LossyProxy()
    server = await asyncio.start_server(_relaying(proxy, server_port), "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


def _relaying(
    proxy: LossyProxy, server_port: int
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def relay(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", server_port)
        answering = asyncio.create_task(_answers(proxy, server, to_client))
        pumps = [asyncio.create_task(_requests(proxy, client, to_server, answering)), answering]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # A reset, as a lost connection shows: some clients do not repeat what a server has ended politely.
        to_client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        to_client.transport.abort()
        to_server.close()
        for pump in pumps:
            pump.cancel()

    return relay


async def _requests(
    proxy: LossyProxy, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, answering: asyncio.Task[None]
) -> None:
    pending = b""
    while chunk := await client.read(CHUNK_BYTES):
        to_server.write(chunk)
        await to_server.drain()
        pending += chunk
        if not _is_complete(pending):
            continue
        if proxy.loss == "cut" and proxy.num_lost < proxy.num_losses:
            answering.cancel()
            proxy.num_lost += 1
            return
        pending = b""


async def _answers(proxy: LossyProxy, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    while chunk := await server.read(CHUNK_BYTES):
        if proxy.loss == "swallow" and proxy.num_lost < proxy.num_losses:
            proxy.num_lost += 1
            return
        to_client.write(chunk)
        await to_client.drain()


def _is_complete(request: bytes) -> bool:
    head, found, body = request.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return bool(found) and len(body) >= int(length or 0)
