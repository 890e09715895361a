"""Engines that answer over real HTTP with their own name, joined as nodes of an api's database."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit.mongo import Database

ACTOR = Actor(room="test")
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@dataclass
class Engine:
    """An engine that answers with its own name, or with an error."""

    name: str
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    is_slow: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: tuple[str, ...] = ()
    """What it says instead of its name."""
    reason: str = "stop"
    fits: int | None = None
    """It refuses more messages than this as too long."""
    breaks_off: bool = False
    """After the first piece it fails."""
    pace_s: float = 0
    """It pauses so long before each piece."""
    hangs: bool = False
    """After the first piece it says nothing more."""

    async def until_asked(self) -> None:
        """Returns when a first request has come."""

        async def has_come() -> bool:
            return bool(self.asked)

        await until(has_come, what=f"{self.name} is asked")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        content = b""
        while True:
            message = await receive()
            content += message["body"]
            if not message.get("more_body"):
                break
        body = json.loads(content)
        self.asked.append(body)
        if self.is_slow and (await receive())["type"] == "http.disconnect":
            self.left.set()
            return
        if self.fits is not None and len(body["messages"]) > self.fits:
            await self._refuse(send, 400, "context_length_exceeded")
            return
        head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        if self.status != 200:
            await self._refuse(send, self.status, "bad_messages")
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in self._parts(head | {"object": "chat.completion.chunk"}, body):
            await asyncio.sleep(self.pace_s)
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if self.hangs and (await receive())["type"] == "http.disconnect":
                self.left.set()
                return
        await send({"type": "http.response.body", "body": b""})

    def _parts(self, head: dict[str, Any], body: dict[str, Any]) -> list[bytes]:
        pieces = self.pieces or (self.name,)
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces, start=1):
            reason = self.reason if number == len(pieces) else None
            parts.append(head | {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": reason}]})
        if body.get("stream_options"):
            parts.append(head | {"choices": [], "usage": USAGE})
        if self.breaks_off:
            parts[1:] = [
                {"error": {"message": "failed", "type": "server_error", "param": None, "code": "engine_failed"}}
            ]
        lines = [f"data: {json.dumps(part)}\n\n".encode() for part in parts]
        return lines if self.breaks_off else [*lines, b"data: [DONE]\n\n"]

    async def _refuse(self, send: Any, status: int, code: str) -> None:
        error = {"message": "bad", "type": "invalid_request_error", "param": "messages", "code": code}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def joined(db: Database, engine: Engine, base: str) -> AsyncIterator[None]:
    """The engine answers for a base, as long as the block lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(uvicorn.Config(engine, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    fact = f.NodeJoined(role="inference", num_slots=0, device="cpu", address=address)
    fields = {"org": "system", "project": "system", "owner": "system", "slots": [], "bases": [base]}
    await create(db, fact, engine.name, fields, actor=ACTOR)
    await advance(db, Kind.NODE, engine.name, fact, actor=ACTOR)
    # It is renewed once for its whole life: ahead, so that it outlasts the time after which a silent node is not asked.
    in_an_hour = {"$dateAdd": {"startDate": "$$NOW", "unit": "hour", "amount": 1}}
    await db["nodes"].update_one({"_id": engine.name}, [{"$set": {"renewed_at": in_an_hour}}])
    try:
        yield
    finally:
        await advance(db, Kind.NODE, engine.name, f.NodeLeft(), actor=ACTOR)
        server.should_exit = True
        await task
        listener.close()
