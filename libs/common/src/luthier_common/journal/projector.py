"""The projector keeps the event list: it reads the topics, inserts each fact raw, and only then trims the outboxes.

It alone judges what was lost: an entry is published again when the projector has passed its offset without a row, or
has seen that the log is shorter than the entry's offset.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier_common.contract.topics import COLLECTIONS, TOPICS, Kind
from luthier_common.journal import telemetry
from luthier_common.journal.notes import flags
from luthier_common.journal.rows import EVENTS, insert_rows, is_of, row_of
from luthier_common.journal.unsent import envelope_of
from luthier_common.kit import leases, presence
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc, is_outage, update_each, update_matching
from luthier_common.kit.rests import Rests
from luthier_common.kit.stream import Part, Reader, Record

log = logging.getLogger(__name__)
POSITIONS = "positions"
ROOM = "projector"
_PARTS = tuple(Part(topic.name, number) for topic in TOPICS.values() for number in range(topic.num_partitions))
LEASE_S = 5.0
SWEEP_S = 1.0
GATHER_S = 0.01
"""Under load so much comes together between two reads: a round trip costs the same for many rows as for one."""
Projected = Callable[[Kind, Collection[str]], None]
Trimmed = Callable[[Kind, Mapping[str, Collection[int]]], None]


@dataclass
class _Held:
    """A partition whose position I hold. `suspects` are entries beyond the log's end, seen in the last sweep."""

    lease: leases.Lease
    offset: int
    suspects: dict[tuple[str, int, int], int] = field(default_factory=dict)
    short_end: int | None = None
    """The end for which the log was last read again from its beginning."""


class Projector:
    """Projects the partitions whose position documents it holds, each under its epoch. Several share them fairly."""

    def __init__(
        self,
        db: Database,
        reader: Reader,
        *,
        owner: str,
        clock: Clock,
        source: str | None = None,
        projected: Projected | None = None,
        trimmed: Trimmed | None = None,
    ) -> None:
        """`source` is the relay's: facts of another one (of before a restored backup) are passed over.

        `projected` hears which things have new rows, as soon as they can be read; `trimmed` which entries have left
        the outboxes.
        """
        self._source = source
        self._db = db
        self._reader = reader
        self._owner = owner
        self._clock = clock
        self._held: dict[Part, _Held] = {}
        self._renewed_at_s = -1e9
        self._modesty = Rests[str](clock, first_s=presence.MODEST_S, most_s=presence.MOST_MODEST_S)
        self._reach = presence.Reach(clock, within_s=LEASE_S)
        self._swept_at_s = 0.0
        self._assigned = False
        self._projected = projected
        self._trimmed = trimmed

    async def step(self, *, wait_ms: int = 200) -> int:
        """Renew, read once, project, sweep. The number of rows handled."""
        await self._renew()
        if not self._held:
            telemetry.saw_lag({})
            await asyncio.sleep(wait_ms / 1000)
            return 0
        try:
            if not self._assigned:
                await self._reader.seek({part: held.offset for part, held in self._held.items()})
                self._assigned = True
            batches, out_of_range = await self._reader.read(wait_ms=wait_ms)
        except TransientError:
            self._assigned = False
            if self._reach.missed() and not self._modesty.is_resting(ROOM):
                self._modesty.begin(ROOM)
            raise
        self._reach.found()
        self._modesty.end(ROOM)
        for part in out_of_range:
            await self._restart(part)
        await self._project({part: records for part, records in batches.items() if records and part in self._held})
        if self._clock.monotonic_s() - self._swept_at_s > SWEEP_S:
            self._swept_at_s = self._clock.monotonic_s()
            await self._sweep()
        return sum(len(records) for records in batches.values())

    async def release(self) -> None:
        await presence.leave(self._db, ROOM, self._owner)
        for held in self._held.values():
            await leases.release(self._db, held.lease, collection=POSITIONS)
        self._held.clear()
        telemetry.saw_lag({})

    async def _renew(self) -> None:
        since_s = self._clock.monotonic_s() - self._renewed_at_s
        if since_s < LEASE_S / 3:
            return
        if since_s > LEASE_S:
            telemetry.saw_lag({})  # the leases have run out: who holds them now says it
        before = set(self._held)
        is_modest = self._modesty.is_resting(ROOM)
        claim = (self._db, ROOM, self._owner, [part.topic for part in _PARTS])
        share = await presence.claim_share(*claim, within_s=LEASE_S, is_modest=is_modest)
        for part in presence.beyond(share, {part: part.topic for part in self._held}):  # nothing is under way here
            await leases.release(self._db, self._held.pop(part).lease, collection=POSITIONS)
        mine = [held.lease for held in self._held.values()]
        is_sure = bool(mine) and await leases.renew(self._db, mine, LEASE_S, collection=POSITIONS)
        wanted = share - Counter(part.topic for part in self._held)
        due = [part for part in _PARTS if not (is_sure and part in self._held)]
        await asyncio.gather(*(self._renew_one(part, 0.0 if wanted[part.topic] else LEASE_S) for part in due))
        self._renewed_at_s = self._clock.monotonic_s()
        if set(self._held) != before:
            self._assigned = False

    async def _renew_one(self, part: Part, free_for_s: float) -> None:
        """More than a fair share is taken only of what nobody wanted: shares are a hint, and no partition waits."""
        name, owner = _name(part), self._owner
        lease = await leases.acquire(self._db, name, owner, LEASE_S, collection=POSITIONS, free_for_s=free_for_s)
        held = self._held.get(part)
        if lease is None:
            self._held.pop(part, None)
        elif held is None or held.lease.epoch != lease.epoch:
            doc = await self._db[POSITIONS].find_one({"_id": name})
            self._held[part] = _Held(lease, int((doc or {}).get("offset", 0)))
            self._assigned = False

    async def _restart(self, part: Part) -> None:
        """The log no longer holds the position: go to its beginning. All that is read again is a cheap duplicate."""
        start = await self._reader.log_start(part)
        log.warning("the log of %s/%s shrank; reading it from %s", part.topic, part.partition, start)
        await self._move({part: start})
        await failpoint("projector.after_restart")
        self._assigned = False

    async def _move(self, offsets: Mapping[Part, int]) -> None:
        """Store how far each partition is projected, under my epochs; where one is no longer mine, begin anew."""
        moves: list[tuple[Doc, Doc]] = []
        for part, offset in offsets.items():
            mine = {"_id": _name(part), "owner": self._owner, "epoch": self._held[part].lease.epoch}
            moves.append((mine, {"$set": {"offset": offset}}))
        if await update_matching(self._db[POSITIONS], moves) == len(moves):
            for part, offset in offsets.items():
                self._held[part].offset = offset
            return
        for part in offsets:
            self._held.pop(part)
        self._assigned = False
        self._renewed_at_s = -1e9

    async def _project(self, batches: Mapping[Part, list[Record]]) -> None:
        """Rows, then outboxes, then positions: each in one round trip for all partitions."""
        if not batches:
            return
        records = [(part, record) for part, found in batches.items() for record in found]
        ours = ((part, record) for part, record in records if self._source is None or is_of(self._source, record))
        rows = [row for part, record in ours if (row := row_of(part, record)) is not None]
        await failpoint("projector.before_insert")
        inserted = await insert_rows(self._db, rows)
        by_kind: dict[Kind, dict[str, list[int]]] = {kind: defaultdict(list) for kind in TOPICS}
        for row in inserted.present:
            by_kind[Kind(row["kind"])][row["thing"]].append(row["seq"])
        if self._projected is not None:
            for kind, by_thing in by_kind.items():
                if by_thing:
                    self._projected(kind, by_thing)
        await failpoint("projector.after_insert")
        await asyncio.gather(*(self._trim(kind, by_thing) for kind, by_thing in by_kind.items()))
        if self._trimmed is not None:
            for kind, by_thing in by_kind.items():
                self._trimmed(kind, by_thing)
        await failpoint("projector.after_trim")
        await self._move({part: found[-1].offset + 1 for part, found in batches.items()})
        await failpoint("projector.after_move")
        await telemetry.saw_rows(self._db, inserted, self._clock.now())

    async def _trim(self, kind: Kind, seqs_by_thing: Mapping[str, list[int]]) -> None:
        await update_each(self._db[COLLECTIONS[kind]], {thing: _trimming(s) for thing, s in seqs_by_thing.items()})

    async def _sweep(self) -> None:
        telemetry.saw_lag(self._lag_by_topic())
        for part, held in list(self._held.items()):
            end = self._reader.log_end(part)
            if end is not None and end[0] < held.offset and end[0] != held.short_end:
                held.short_end = end[0]
                await self._restart(part)
        for kind in TOPICS:
            await self._judge(kind)

    def _end_of(self, part: Part) -> tuple[int, int] | None:
        """Where the log ends, and when the broker said so in milliseconds; None where that is not known.

        A log that still seems short after it was read again has been read beyond what the broker names: a wrong end
        must not stop the rest.
        """
        end, held = self._reader.log_end(part), self._held[part]
        if end is None or (end[0] < held.offset and end[0] != held.short_end):
            return None
        return max(end[0], held.offset), end[1]

    def _lag_by_topic(self) -> dict[str, int]:
        behind = {part.topic: 0 for part in self._held}
        for part, held in self._held.items():
            if (end := self._reader.log_end(part)) is not None:
                behind[part.topic] += max(0, end[0] - held.offset)
        return behind

    async def _judge(self, kind: Kind) -> None:
        """Find published entries that the log has lost, and hand them back to the relay."""
        topic = TOPICS[kind].name
        ends = {part: end for part in self._held if part.topic == topic and (end := self._end_of(part)) is not None}
        if not ends:
            return
        suspects: dict[Part, dict[tuple[str, int, int], int]] = {part: {} for part in ends}
        query = {"part": {"$in": [part.partition for part in ends]}, "pend": True}
        fields = {"part": 1, "outbox.seq": 1, "outbox.offset": 1}
        async for thing in self._db[COLLECTIONS[kind]].find(query, fields):
            part = Part(topic, thing["part"])
            held, (mark, fetched_at_ms) = self._held[part], ends[part]
            for entry in thing["outbox"]:
                seq, offset = entry["seq"], entry["offset"]
                if offset is None:
                    continue
                if offset < held.offset:
                    await self._passed(kind, thing["_id"], seq, offset)
                elif offset >= mark:
                    noticed_at_ms = held.suspects.get((thing["_id"], seq, offset))
                    if noticed_at_ms is not None and fetched_at_ms > noticed_at_ms:
                        await self._unnote(kind, thing["_id"], seq, offset)
                    else:
                        suspects[part][(thing["_id"], seq, offset)] = fetched_at_ms
        for part, found in suspects.items():
            self._held[part].suspects = found

    async def _passed(self, kind: Kind, thing: str, seq: int, offset: int) -> None:
        """Trim what the list has and hand back what was lost. Where the list has another content, it waits visibly."""
        row = await self._db[EVENTS].find_one({"_id": f"{kind}/{thing}/{seq}"}, {"sha256": 1})
        if row is None:
            await self._unnote(kind, thing, seq, offset)
        elif await self._digest_of(kind, thing, seq) == row["sha256"]:
            await self._trim(kind, {thing: [seq]})

    async def _digest_of(self, kind: Kind, thing: str, seq: int) -> str | None:
        fields = {"org": 1, "project": 1, "outbox": {"$elemMatch": {"seq": seq}}}
        found = await self._db[COLLECTIONS[kind]].find_one({"_id": thing, "outbox.seq": seq}, fields)
        return envelope_of(kind, found, found["outbox"][0]).digest() if found else None

    async def _unnote(self, kind: Kind, thing: str, seq: int, offset: int) -> None:
        entry = {"outbox": {"$elemMatch": {"seq": seq, "offset": offset}}}
        unset = {"$set": {"outbox.$.offset": None, "outbox.$.partition": None, "unsent": True}}
        await self._db[COLLECTIONS[kind]].update_one({"_id": thing, **entry}, unset)
        log.warning(
            "a published fact was lost by the broker; it is sent again", extra={"fact": f"{kind}/{thing}/{seq}"}
        )


def _name(part: Part) -> str:
    return f"{part.topic}/{part.partition}"


def _trimming(seqs: list[int]) -> list[Doc]:
    """The update that takes entries out of a thing's outbox."""
    kept = {"$filter": {"input": "$outbox", "as": "e", "cond": {"$not": [{"$in": ["$$e.seq", seqs]}]}}}
    return [{"$set": {"outbox": kept}}, {"$set": flags()}]


async def run_projector(projector: Projector, stopping: asyncio.Event, beat: Any) -> None:
    """Project until stopped. Errors of servers are waited out; position and rows make every repetition harmless."""
    while not stopping.is_set():
        try:
            handled = await projector.step()
            beat()
            if handled:
                await asyncio.sleep(GATHER_S)
        except Exception as error:
            if not is_outage(error):
                raise
            beat()  # alive and waiting: a restart would not bring the servers back
            log.warning("the projector waits: %s", error)
            await asyncio.sleep(0.5)
    await projector.release()
