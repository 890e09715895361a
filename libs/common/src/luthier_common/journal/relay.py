"""The relay tells what was saved: it publishes outbox entries in order and notes where they lie.

An entry leaves the outbox only when the projector has its row; the relay never judges what was lost, and never sends
again by the clock.
"""

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from luthier_common.contract.envelope import Actor, Envelope
from luthier_common.contract.topics import COLLECTIONS, TOPICS, Kind
from luthier_common.journal.notes import Notes
from luthier_common.journal.telemetry import num_published
from luthier_common.journal.wake import ALL_PARTS, Place, Wake
from luthier_common.kit import leases, presence
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, Database, Doc, is_outage
from luthier_common.kit.rests import Rests
from luthier_common.kit.stream import Message, Writer

log = logging.getLogger(__name__)
ROOM = "relay"
LEASE_S = 3.0
ASK_AGAIN_S = LEASE_S / 3
MARGIN_S = 0.5
PATIENCE_S = 0.25
"""A send that takes longer goes on by itself: neither the other partitions nor the leases wait for it."""
LAST_PATIENCE_S = 1.0
FIRST_REST_S, MAX_REST_S = 0.5, 5.0
_KINDS = [kind for kind, _ in ALL_PARTS]
MAX_THINGS = 120
"""Found at once of one partition."""
MAX_FACTS = 2000
"""At once to one partition: after a long outage, what waits must not outlast the lease."""


class Relay:
    """Publishes for the partitions whose leases it holds; several relays share them fairly.

    Each partition has one send at a time, so that no fact of a thing goes out while it is not known what became of the
    one before it. A partition that cannot be reached rests and is left to other relays; the rest go on.
    """

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
        self.under_way: dict[Place, asyncio.Task[int]] = {}
        """Sends that the last step did not wait for."""
        self._rests = Rests[Place](clock, first_s=FIRST_REST_S, most_s=MAX_REST_S)
        self._ask_at: dict[Place, float] = {}
        self._held_until: dict[Place, float] = {}
        self._held: dict[Place, leases.Lease] = {}
        self._left: set[Place] = set()
        self._leaving: set[Place] = set()
        """To be given up when what is under way in them has ended."""
        self._modesty = Rests[str](clock, first_s=presence.MODEST_S, most_s=presence.MOST_MODEST_S)
        self._reach = presence.Reach(clock, within_s=LEASE_S)

    async def step(self, places: Iterable[Place] = ALL_PARTS) -> int:
        """Publish once what waits in these partitions, where they are mine; the number of facts whose sends have ended.

        Those that it could not look at yet, or had too much for once, are looked at by the next step too.
        """
        num_sent = self._collect()
        asked, self._left = self._left | set(places), set()
        await self._keep_leases()
        await self._notes.make_room()
        known = self._notes.ids()
        free = {place for place in asked if self._is_free(place)}
        self._left |= asked - free
        found = await self._find_unsent([place for place in self._held if place in free])
        waiting = {place: _unsent_of(place, things, known) for place, things in found.items()}
        full = {place for place, facts in waiting.items() if len(found[place]) >= MAX_THINGS or len(facts) > MAX_FACTS}
        self.has_more = bool(full)
        self._left |= full
        sends = {place: asyncio.create_task(self._publish(place, facts)) for place, facts in waiting.items() if facts}
        self.under_way |= sends
        if sends:
            await asyncio.wait(sends.values(), timeout=PATIENCE_S)
        return num_sent + self._collect()

    def forget(self, kind: Kind, seqs_by_thing: Mapping[str, Collection[int]]) -> None:
        """These entries have left the outbox: where they lie need not be noted."""
        self._notes.forget(kind, seqs_by_thing)

    def _is_free(self, place: Place) -> bool:
        is_idle = place not in self.under_way and place not in self._leaving
        return is_idle and not self._rests.is_resting(place)

    def _collect(self) -> int:
        """What the sends that have ended published."""
        ended = [place for place, send in self.under_way.items() if send.done()]
        return sum(self.under_way.pop(place).result() for place in ended)

    async def release(self) -> None:
        if self._renewing is not None:
            with suppress(*OUTAGES):
                await self._renewing
        await self._end_sends()
        await self._notes.write()
        await presence.leave(self._db, ROOM, self._owner)
        for lease in self._held.values():
            await leases.release(self._db, lease)
        self._held.clear()
        self._held_until.clear()
        self._ask_at.clear()

    async def _end_sends(self) -> None:
        """What was sent and is not known to be stored is sent again, by whoever comes next."""
        if self.under_way:
            _, slow = await asyncio.wait(self.under_way.values(), timeout=LAST_PATIENCE_S)
            for send in slow:
                send.cancel()
            await asyncio.gather(*self.under_way.values(), return_exceptions=True)
            self.under_way.clear()

    async def _keep_leases(self) -> None:
        """Renew beside the work, which is not kept waiting: `_publish` looks how long its lease still holds."""
        self._collect_renewal()
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._hold_all())
        if not self._held:
            await asyncio.wait({self._renewing})
            self._collect_renewal()

    def _collect_renewal(self) -> None:
        if self._renewing is not None and self._renewing.done():
            renewed, self._renewing = self._renewing, None
            renewed.result()

    async def _hold_all(self) -> None:
        """Take or renew what it is time for; a lease that another holds is not asked for at every wake-up."""
        now = self._clock.monotonic_s()
        due = [
            place for place in ALL_PARTS if now >= self._ask_at.get(place, now) and not self._rests.is_resting(place)
        ]
        if not due:
            return
        claim, is_modest = (self._db, ROOM, self._owner, _KINDS), self._modesty.is_resting(ROOM)
        share = await presence.claim_share(*claim, within_s=LEASE_S, is_modest=is_modest)
        await self._give_up_beyond(share)
        mine = {place: self._held[place] for place in due if place in self._held}
        if mine and await leases.renew(self._db, list(mine.values()), LEASE_S):
            kept = [place for place, lease in mine.items() if self._held.get(place) is lease]  # not left meanwhile
            self._ask_at |= dict.fromkeys(kept, now + ASK_AGAIN_S)
            self._held_until |= dict.fromkeys(kept, now + LEASE_S)
            due = [place for place in due if place not in mine]
        for place in due:
            if not self._rests.is_resting(place):
                num_held = sum(held[0] == place[0] for held in self._held)
                await self._hold(place, 0.0 if num_held < share[place[0]] else LEASE_S)

    async def _give_up_beyond(self, share: Counter[Kind]) -> None:
        """Let others have the rest. What was sent is noted first, and so not sent twice."""
        leaving_first = sorted(self._held, key=lambda place: place not in self._leaving)
        chosen = presence.beyond(share, {place: place[0] for place in leaving_first})
        self._leaving = {place for place in chosen if place in self.under_way}
        given = {place: self._held.pop(place) for place in chosen if place not in self._leaving}
        for place in given:
            self._held_until.pop(place, None)
        if given:
            await self._notes.write()
        for lease in given.values():
            await leases.release(self._db, lease)

    async def _hold(self, place: Place, free_for_s: float) -> None:
        """More than a fair share is taken only of what nobody wanted: shares are a hint, and no partition waits."""
        now = self._clock.monotonic_s()
        kind, part = place
        name = f"relay/{kind}/{part}"
        lease = await leases.acquire(self._db, name, self._owner, LEASE_S, free_for_s=free_for_s)
        self._ask_at[place] = now + ASK_AGAIN_S
        if lease is None:
            self._held.pop(place, None)
            self._held_until.pop(place, None)
        else:
            if place not in self._held:
                self._left.add(place)
            self._held[place] = lease
            self._held_until[place] = now + LEASE_S

    async def _find_unsent(self, places: list[Place]) -> dict[Place, list[Doc]]:
        """Things of these partitions with the entries that have no place, in one round trip for all.

        So many of each partition: what waits in one that cannot be reached never hides what waits in the others.
        """
        if not places:
            return {}
        (first, *others) = places
        united = [{"$unionWith": {"coll": COLLECTIONS[other[0]], "pipeline": _finding(other)}} for other in others]
        found: dict[Place, list[Doc]] = defaultdict(list)
        async for thing in self._db[COLLECTIONS[first[0]]].aggregate([*_finding(first), *united]):
            found[(Kind(thing["kind"]), int(thing["part"]))].append(thing)
        return found

    async def _publish(self, place: Place, facts: list[Envelope]) -> int:
        kind, part = place
        envelopes = facts[:MAX_FACTS]
        if self._clock.monotonic_s() > self._held_until.get(place, 0.0) - MARGIN_S:
            self._left.add(place)
            return 0
        messages = [Message(e.thing.encode(), e.value(), e.headers(self._source)) for e in envelopes]
        try:
            await failpoint("relay.before_send")
            offsets = await self._writer.send(TOPICS[kind].name, part, messages)
        except TransientError as error:
            await self._leave(place, error)
            return 0
        self._rests.end(place)
        self._modesty.end(ROOM)
        self._reach.found()
        num_published.add(len(envelopes), {"topic": TOPICS[kind].name})
        await failpoint("relay.after_send")
        self._notes.add(kind, part, {(e.thing, e.seq): offset for e, offset in zip(envelopes, offsets, strict=True)})
        return len(envelopes)

    async def _leave(self, place: Place, error: TransientError) -> None:
        """Let a partition rest; another relay, which may reach it, can have its lease at once."""
        rest_s = self._rests.begin(place)
        if self._reach.missed() and not self._modesty.is_resting(ROOM):
            self._modesty.begin(ROOM)
        log.warning("the relay waits %g s before it tells %s/%s: %s", rest_s, TOPICS[place[0]].name, place[1], error)
        self._ask_at.pop(place, None)
        if (lease := self._held.pop(place, None)) is not None:
            with suppress(*OUTAGES):
                await leases.release(self._db, lease)


def _seq(entry: Doc) -> int:
    return int(entry["seq"])


def _finding(place: Place) -> list[Doc]:
    kind, part = place
    unsent: Doc = {"$filter": {"input": "$outbox", "as": "e", "cond": {"$eq": ["$$e.offset", None]}}}
    fields = {"kind": {"$literal": str(kind)}, "org": 1, "project": 1, "part": 1, "outbox": unsent}
    return [{"$match": {"part": part, "unsent": True}}, {"$limit": MAX_THINGS}, {"$project": fields}]


def _unsent_of(place: Place, things: list[Doc], known: frozenset[str]) -> list[Envelope]:
    """In order for each thing, without those that were sent and whose places are only not written yet."""
    entries = ((thing, entry) for thing in things for entry in sorted(thing["outbox"], key=_seq))
    envelopes = (envelope_of(place[0], thing, entry) for thing, entry in entries)
    return [envelope for envelope in envelopes if envelope.id not in known]


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


async def run_relay(relay: Relay, wake: Wake, stopping: asyncio.Event, beat: Any, *, idle_s: float = 1.0) -> None:
    """Publish until stopped: at once where woken, and everywhere every `idle_s`."""
    looked_at_s = -math.inf
    while not stopping.is_set():
        has_more = False
        try:
            places: Iterable[Place] = wake.take()
            if time.monotonic() - looked_at_s >= idle_s:
                places, looked_at_s = ALL_PARTS, time.monotonic()
            has_more = await relay.step(places) > 0 and relay.has_more
            beat()
        except Exception as error:
            if not is_outage(error):
                raise
            beat()  # alive and waiting: a restart would not bring the servers back
            log.warning("the relay waits: %s", error)
            looked_at_s = -math.inf
            await asyncio.sleep(0.5)
        if not has_more:
            await _pause(relay, wake, idle_s)
    await relay.release()


async def _pause(relay: Relay, wake: asyncio.Event, idle_s: float) -> None:
    """Until woken, or a send has ended that no step waited for: its partition is free again."""
    woken = asyncio.create_task(wake.wait())
    try:
        waits = {woken, *relay.under_way.values()}
        await asyncio.wait(waits, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        woken.cancel()
