"""The relay tells what was saved: it publishes outbox entries in order and notes where they lie.

An entry leaves the outbox only when the projector has its row; the relay never judges what was lost, and never sends
again by the clock.
"""

import asyncio
import logging
from collections import defaultdict
from itertools import islice
from typing import Any

from luthier_common.contract.envelope import Actor, Envelope
from luthier_common.contract.topics import COLLECTIONS, TOPICS, Kind
from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, Database, Doc, update_each
from luthier_common.kit.stream import Message, Writer

log = logging.getLogger(__name__)
LEASE_S = 3.0
MARGIN_S = 0.5
MAX_THINGS = 200
MAX_FACTS = 2000
"""At once to one partition: after a long outage, what waits must not outlast the lease."""
ALL_PARTS = tuple((kind, part) for kind, topic in TOPICS.items() for part in range(topic.num_partitions))


class Relay:
    """Publishes for the partitions whose leases it holds; several relays share them."""

    def __init__(self, db: Database, writer: Writer, *, owner: str, source: str, clock: Clock) -> None:
        self._db = db
        self._writer = writer
        self._owner = owner
        self._source = source
        self._clock = clock
        self._ask_at: dict[tuple[Kind, int], float] = {}
        self._held_until: dict[tuple[Kind, int], float] = {}
        self._held: dict[tuple[Kind, int], leases.Lease] = {}

    async def step(self) -> int:
        """Publish what waits in my partitions once; the number of facts published."""
        await asyncio.gather(*(self._hold(kind, part) for kind, part in ALL_PARTS))
        found = await asyncio.gather(*(self._find_unsent(kind) for kind in TOPICS))
        waiting: dict[tuple[Kind, int], list[Doc]] = defaultdict(list)
        for kind, things in zip(TOPICS, found, strict=True):
            for thing in things:
                waiting[(kind, int(thing["part"]))].append(thing)
        return sum(await asyncio.gather(*(self._publish(*where, things) for where, things in waiting.items())))

    async def release(self) -> None:
        for lease in self._held.values():
            await leases.release(self._db, lease)
        self._held.clear()
        self._held_until.clear()
        self._ask_at.clear()

    async def _hold(self, kind: Kind, part: int) -> None:
        """Take or renew a lease when it is time to; one that another holds is not asked for at every wake-up."""
        now = self._clock.monotonic_s()
        if now < self._ask_at.get((kind, part), now):
            return
        lease = await leases.acquire(self._db, f"relay/{kind}/{part}", self._owner, LEASE_S)
        self._ask_at[(kind, part)] = now + (LEASE_S / 3 if lease is None else LEASE_S / 2)
        if lease is None:
            self._held.pop((kind, part), None)
            self._held_until.pop((kind, part), None)
        else:
            self._held[(kind, part)] = lease
            self._held_until[(kind, part)] = now + LEASE_S

    async def _find_unsent(self, kind: Kind) -> list[Doc]:
        parts = [part for held_kind, part in self._held if held_kind == kind]
        query = {"part": {"$in": parts}, "unsent": True}
        fields = {"org": 1, "project": 1, "part": 1, "outbox": 1}
        if not parts:
            return []
        return await self._db[COLLECTIONS[kind]].find(query, fields).limit(MAX_THINGS).to_list(MAX_THINGS)

    async def _publish(self, kind: Kind, part: int, things: list[Doc]) -> int:
        waiting = (envelope for thing in things for envelope in _unsent(kind, thing))
        envelopes = list(islice(waiting, MAX_FACTS))
        if not envelopes or self._clock.monotonic_s() > self._held_until[(kind, part)] - MARGIN_S:
            return 0
        messages = [Message(e.thing.encode(), e.value(), e.headers(self._source)) for e in envelopes]
        offsets = await self._writer.send(TOPICS[kind].name, part, messages)
        await failpoint("relay.after_send")
        places: dict[str, dict[int, int]] = defaultdict(dict)
        for envelope, offset in zip(envelopes, offsets, strict=True):
            places[envelope.thing][envelope.seq] = offset
        noted = {thing: _noting(part, offsets) for thing, offsets in places.items()}
        await update_each(self._db[COLLECTIONS[kind]], noted)
        return len(envelopes)


def _noting(part: int, offsets: dict[int, int]) -> list[Doc]:
    """The update that writes partition and offset into a thing's entries, by seq."""
    branches = [{"case": {"$eq": ["$$e.seq", seq]}, "then": offset} for seq, offset in offsets.items()]
    place = {"partition": part, "offset": {"$switch": {"branches": branches}}}
    entry = {"$cond": [{"$in": ["$$e.seq", list(offsets)]}, {"$mergeObjects": ["$$e", place]}, "$$e"]}
    return [{"$set": {"outbox": {"$map": {"input": "$outbox", "as": "e", "in": entry}}}}, {"$set": flags()}]


def flags() -> Doc:
    """Expressions that keep `unsent` and `pend`, by which relay and projector find work, true to the outbox."""
    return {"unsent": {"$in": [None, "$outbox.offset"]}, "pend": {"$gt": [{"$size": "$outbox"}, 0]}}


def _unsent(kind: Kind, thing: Doc) -> list[Envelope]:
    return [
        envelope_of(kind, thing, entry)
        for entry in sorted(thing["outbox"], key=lambda e: int(e["seq"]))
        if entry["offset"] is None
    ]


def envelope_of(kind: Kind, thing: Doc, entry: dict[str, Any]) -> Envelope:
    return Envelope(
        kind=kind,
        thing=thing["_id"],
        seq=entry["seq"],
        type=entry["type"],
        at=entry["at"],
        generation=entry["generation"],
        attempt=entry["attempt"],
        org=thing["org"],
        project=thing["project"],
        actor=Actor.model_validate(entry["actor"]),
        terminal=entry["terminal"],
        trace=entry["trace"],
        data=entry["data"],
    )


async def run_relay(
    relay: Relay, wake: asyncio.Event, stopping: asyncio.Event, beat: Any, *, idle_s: float = 1.0
) -> None:
    """Publish until stopped: at once when woken, and every `idle_s` otherwise."""
    while not stopping.is_set():
        try:
            wake.clear()
            sent = await relay.step()
            beat()
        except OUTAGES as error:
            beat()  # alive and waiting: a restart would not bring the servers back
            log.warning("the relay waits: %s", error)
            sent = 0
            await asyncio.sleep(0.5)
        if not sent:
            try:
                await asyncio.wait_for(wake.wait(), idle_s)
            except TimeoutError:
                continue
    await relay.release()


async def wake_on_change(db: Database, wake: asyncio.Event) -> None:
    """Set `wake` soon after any process has filled an outbox. A hint only: losing it costs one idle interval."""
    filled = {"$or": [{"operationType": "insert"}, {"updateDescription.updatedFields.unsent": True}]}
    seen = [{"$match": {"ns.coll": {"$in": list(COLLECTIONS.values())}, **filled}}]
    while True:
        try:
            async with db.watch([*seen, {"$project": {"_id": 1}}], max_await_time_ms=1000) as stream:
                async for _ in stream:
                    wake.set()
        except Exception as error:
            log.info("the change stream is away: %s", type(error).__name__)
            await asyncio.sleep(1)
