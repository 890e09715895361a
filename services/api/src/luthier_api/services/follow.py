"""Following a job: its lines as server-sent events, until the job has ended or the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import msgspec

from luthier_api.domain import View
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.events import lines_after
from luthier_api.store import Repository
from luthier_api.store.events import EventStore
from luthier_api.wire.events import Place
from luthier_common.contract.events import JobDeleted
from luthier_common.contract.lifecycle import JOB
from luthier_common.contract.topics import Kind
from luthier_common.kit.mongo import OUTAGES, Doc

EVENT = "fine_tuning.job.event"
DONE = "done"
END_FIELDS = {"phase": 1, "status": 1, "seq": 1}
LOOK_S = 1.0
"""How often a follower looks for rows that another process has projected."""
ROWS_A_READ = 200
RETRY_AFTER_S = 5
HELLO = b"retry: 1000\n: the events of a job, oldest first\n\n"
HEARTBEAT = b": still here\n\n"


@dataclass(eq=False)
class Follower:
    """One open stream."""

    key_id: str
    job_id: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Followers:
    """The open streams of this process. One that nobody reads any more is forgotten with its generator."""

    def __init__(self) -> None:
        self._open: WeakSet[Follower] = WeakSet()
        self.is_stopping = False

    def admit(self, key_id: str, job_id: str, most: int) -> Follower:
        """A place for one more stream of this key; ApiError when it has as many as it may."""
        if sum(follower.key_id == key_id for follower in self._open) >= most:
            message = f"This API key follows {most} jobs already."
            raise ApiError(ErrorCode.TOO_MANY_STREAMS, message, headers={"retry-after": str(RETRY_AFTER_S)})
        follower = Follower(key_id, job_id)
        self._open.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        self._open.discard(follower)

    def projected(self, kind: Kind, things: Collection[str]) -> None:
        """New rows of these things are in the list."""
        for follower in self._open if kind is Kind.JOB else ():
            if follower.job_id in things:
                follower.wake.set()

    def stop(self) -> None:
        """End all streams; their clients come again with the id of the last event that they saw."""
        self.is_stopping = True
        for follower in self._open:
            follower.wake.set()


class FollowService:
    """Streams of one principal, for one request. `may_still` tells whether its key still holds."""

    def __init__(
        self,
        repository: Repository,
        followers: Followers,
        view: View,
        may_still: Callable[[], Awaitable[bool]],
        *,
        most: int,
        heartbeat_s: float,
    ) -> None:
        self._repository = repository
        self._store = EventStore(repository)
        self._followers = followers
        self._view = view
        self._may_still = may_still
        self._most = most
        self._heartbeat_s = heartbeat_s

    def follow(self, job_id: str, place: Place | None) -> AsyncIterator[bytes]:
        """The lines behind the place, and those that are still to come; ApiError with too many streams open."""
        follower = self._followers.admit(self._repository.principal.key_id, job_id, self._most)
        return self._stream(follower, place)

    async def _stream(self, follower: Follower, place: Place | None) -> AsyncIterator[bytes]:
        at = _Reached(place, seq=place.seq if place else 1, may_be_end=place is not None)
        loop = asyncio.get_running_loop()
        told_at_s = asked_at_s = loop.time()
        try:
            yield HELLO
            while not (self._followers.is_stopping or at.is_over):
                follower.wake.clear()
                told = b""
                with suppress(*OUTAGES):  # the stream stays open and goes on when the database is back
                    if loop.time() - asked_at_s >= self._heartbeat_s:
                        asked_at_s = loop.time()
                        if not await self._may_still():
                            return
                    told = await self._read(follower.job_id, at)
                    if not told and loop.time() - told_at_s >= self._heartbeat_s:
                        told = HEARTBEAT
                if told:
                    told_at_s = loop.time()
                    yield told
                else:
                    await _wait(follower.wake, LOOK_S)
        finally:
            self._followers.leave(follower)

    async def _read(self, job_id: str, at: "_Reached") -> bytes:
        """What is new; the closing event when nothing is and nothing will be."""
        while rows := await self._store.rows_from(job_id, at.seq, ROWS_A_READ):
            at.seq, at.may_be_end = rows[-1]["seq"] + 1, _may_be_last(rows[-1])
            if told := b"".join(_told(row, at.place, self._view) for row in rows):
                return told
        if not at.may_be_end:
            return b""
        job = await self._repository.find_job(job_id, END_FIELDS)
        if job is not None and (job["seq"] >= at.seq or not JOB.is_final(job["phase"])):
            return b""  # a restart that is yet to be listed
        at.is_over = True
        return _event(DONE, {"object": "fine_tuning.job.events.done", "status": job["status"] if job else None})


@dataclass
class _Reached:
    """How far a stream has come. `may_be_end`: the last row ended the job, or none has been read yet."""

    place: Place | None
    seq: int
    may_be_end: bool
    is_over: bool = False


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return


def _may_be_last(row: Doc) -> bool:
    return bool(row.get("terminal")) or row["type"] == JobDeleted.__name__


def _told(row: Doc, place: Place | None, view: View) -> bytes:
    return b"".join(_event(EVENT, line, line["id"]) for line in lines_after(row, place, view))


def _event(name: str, data: Any, event_id: str | None = None) -> bytes:
    head = f"id: {event_id}\nevent: {name}\n" if event_id else f"event: {name}\n"
    return b"%bdata: %b\n\n" % (head.encode(), msgspec.json.encode(data))
