"""The relay tells what was saved: it publishes outbox entries in order and notes where they lie.

An entry leaves the outbox only when the projector has its row; the relay never judges what was lost, and never sends
again by the clock.
"""

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from typing import Any

from luthier_common.contract.envelope import Actor, Envelope
from luthier_common.contract.topics import COLLECTIONS, TOPICS, Kind
from luthier_common.journal.notes import Notes
from luthier_common.journal.telemetry import num_published
from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, Database, Doc
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
        self._notes = Notes(db)
        self._renewing: asyncio.Task[None] | None = None
        self.has_more = False
        """Whether the last step left something because it was too much at once."""
        self._ask_at: dict[tuple[Kind, int], float] = {}
        self._held_until: dict[tuple[Kind, int], float] = {}
        self._held: dict[tuple[Kind, int], leases.Lease] = {}

    async def step(self) -> int:
        """Publish what waits in my partitions once; the number of facts published."""
        await self._keep_leases()
        await self._notes.make_room()
        known = self._notes.ids()
        waiting: dict[tuple[Kind, int], list[Envelope]] = defaultdict(list)
        found = await self._find_unsent()
        for thing in found:
            kind = Kind(thing["kind"])
            unsent = (envelope_of(kind, thing, entry) for entry in sorted(thing["outbox"], key=_seq))
            waiting[(kind, int(thing["part"]))] += [envelope for envelope in unsent if envelope.id not in known]
        self.has_more = len(found) >= MAX_THINGS or any(len(facts) > MAX_FACTS for facts in waiting.values())
        sends = (self._publish(*where, facts) for where, facts in waiting.items())
        ended = await asyncio.gather(*sends, return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException):
                raise result
        return sum(result for result in ended if isinstance(result, int))

    async def release(self) -> None:
        if self._renewing is not None:
            with suppress(*OUTAGES):
                await self._renewing
        await self._notes.write()
        for lease in self._held.values():
            await leases.release(self._db, lease)
        self._held.clear()
        self._held_until.clear()
        self._ask_at.clear()

    async def _keep_leases(self) -> None:
        """Renew beside the work, which is not kept waiting: `_publish` looks how long its lease still holds."""
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._hold_all())
        if not self._held:
            await asyncio.wait({self._renewing})
        if self._renewing.done():
            renewed, self._renewing = self._renewing, None
            renewed.result()

    async def _hold_all(self) -> None:
        for kind, part in ALL_PARTS:
            await self._hold(kind, part)

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

    async def _find_unsent(self) -> list[Doc]:
        """Things of my partitions with the entries that have no place, in one round trip for all kinds."""
        parts = {kind: [part for held_kind, part in self._held if held_kind == kind] for kind in TOPICS}
        (first, *others) = (_finding(kind, mine) for kind, mine in parts.items())
        united = [{"$unionWith": {"coll": COLLECTIONS[kind], "pipeline": found}} for kind, found in others]
        return await self._db[COLLECTIONS[first[0]]].aggregate([*first[1], *united]).to_list(None)

    async def _publish(self, kind: Kind, part: int, facts: list[Envelope]) -> int:
        envelopes = facts[:MAX_FACTS]
        if not envelopes or self._clock.monotonic_s() > self._held_until.get((kind, part), 0.0) - MARGIN_S:
            return 0
        messages = [Message(e.thing.encode(), e.value(), e.headers(self._source)) for e in envelopes]
        await failpoint("relay.before_send")
        offsets = await self._writer.send(TOPICS[kind].name, part, messages)
        num_published.add(len(envelopes), {"topic": TOPICS[kind].name})
        await failpoint("relay.after_send")
        self._notes.add(kind, part, {(e.thing, e.seq): offset for e, offset in zip(envelopes, offsets, strict=True)})
        return len(envelopes)


def _seq(entry: Doc) -> int:
    return int(entry["seq"])


def _finding(kind: Kind, parts: list[int]) -> tuple[Kind, list[Doc]]:
    unsent: Doc = {"$filter": {"input": "$outbox", "as": "e", "cond": {"$eq": ["$$e.offset", None]}}}
    fields = {"kind": {"$literal": str(kind)}, "org": 1, "project": 1, "part": 1, "outbox": unsent}
    mine = {"part": {"$in": parts}, "unsent": True}
    return kind, [{"$match": mine}, {"$limit": MAX_THINGS}, {"$project": fields}]


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
        has_more = False
        try:
            wake.clear()
            has_more = await relay.step() > 0 and relay.has_more
            beat()
        except OUTAGES as error:
            beat()  # alive and waiting: a restart would not bring the servers back
            log.warning("the relay waits: %s", error)
            await asyncio.sleep(0.5)
        if not has_more:
            try:
                await asyncio.wait_for(wake.wait(), idle_s)
            except TimeoutError:
                continue
    await relay.release()


async def wake_on_change(db: Database, wake: asyncio.Event) -> None:
    """Set `wake` soon after any process has filled an outbox. A hint only: losing it costs one idle interval."""
    added = {"updateDescription.updatedFields.seq": {"$exists": True}}  # `unsent` may have been true before
    filled = {"$or": [{"operationType": "insert"}, added, {"updateDescription.updatedFields.unsent": True}]}
    seen = [{"$match": {"ns.coll": {"$in": list(COLLECTIONS.values())}, **filled}}]
    while True:
        try:
            async with db.watch([*seen, {"$project": {"_id": 1}}], max_await_time_ms=1000) as stream:
                async for _ in stream:
                    wake.set()
        except Exception as error:
            log.info("the change stream is away: %s", type(error).__name__)
            await asyncio.sleep(1)
