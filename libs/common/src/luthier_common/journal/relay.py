"""The relay tells what was saved: it publishes outbox entries in order and notes where they lie.

An entry leaves the outbox only when the projector has its row; the relay never judges what was lost, and never sends
again by the clock.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from luthier_common.contract.envelope import Envelope
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.journal.notes import Notes
from luthier_common.journal.telemetry import num_published
from luthier_common.journal.unsent import EVERYWHERE, MAX_THINGS, Asked, also_asked, envelopes_of, find_unsent
from luthier_common.journal.wake import ALL_PARTS, Place, Wake
from luthier_common.kit import leases, presence
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, Database, is_outage
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
        self._left: Asked = {}
        """Where the next step is to look."""
        self._leaving: set[Place] = set()
        """To be given up when what is under way in them has ended."""
        self._modesty = Rests[str](clock, first_s=presence.MODEST_S, most_s=presence.MOST_MODEST_S)
        self._reach = presence.Reach(clock, within_s=LEASE_S)

    async def step(self, asked: Asked = EVERYWHERE) -> int:
        """Publish once what waits there, in partitions that are mine; the number of facts whose sends have ended.

        Where it could not look yet, or where there is too much for once, the next step looks too.
        """
        num_sent = self._collect()
        self._leave_to_next(asked)
        await self._keep_leases()
        await self._notes.make_room()
        known = self._notes.ids()
        left, self._left = self._left, {}
        free = {place: things for place, things in left.items() if self._is_free(place)}
        self._leave_to_next({place: things for place, things in left.items() if place not in free})
        found = await find_unsent(self._db, {place: things for place, things in free.items() if place in self._held})
        waiting = {place: envelopes_of(place, things, known) for place, things in found.items()}
        full = {place for place, facts in waiting.items() if len(found[place]) >= MAX_THINGS or len(facts) > MAX_FACTS}
        self.has_more = bool(full)
        self._leave_to_next(dict.fromkeys(full))
        sends = {place: asyncio.create_task(self._publish(place, facts)) for place, facts in waiting.items() if facts}
        self.under_way |= sends
        if sends:
            await asyncio.wait(sends.values(), timeout=PATIENCE_S)
        return num_sent + self._collect()

    def _leave_to_next(self, asked: Asked) -> None:
        self._left = also_asked(self._left, asked)

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
                self._leave_to_next({place: None})
            self._held[place] = lease
            self._held_until[place] = now + LEASE_S

    async def _publish(self, place: Place, facts: list[Envelope]) -> int:
        kind, part = place
        envelopes = facts[:MAX_FACTS]
        if self._clock.monotonic_s() > self._held_until.get(place, 0.0) - MARGIN_S:
            self._leave_to_next({place: None})
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


async def run_relay(relay: Relay, wake: Wake, stopping: asyncio.Event, beat: Any, *, idle_s: float = 1.0) -> None:
    """Publish until stopped: at once where woken, and everywhere every `idle_s`."""
    looked_at_s = -math.inf
    while not stopping.is_set():
        has_more = False
        try:
            asked: Asked = wake.take()
            if time.monotonic() - looked_at_s >= idle_s:
                asked, looked_at_s = EVERYWHERE, time.monotonic()
            has_more = await relay.step(asked) > 0 and relay.has_more
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
