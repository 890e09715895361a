"""The projector keeps the event list: it reads the topics, inserts each fact raw, and only then trims the outboxes.

It alone judges what was lost: an entry is published again when the projector has passed its offset without a row, or
has seen that the log is shorter than the entry's offset.
"""

import asyncio
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from luthier_common.contract.envelope import Envelope, read_envelope
from luthier_common.contract.topics import COLLECTIONS, TOPICS, Kind
from luthier_common.journal.relay import flags
from luthier_common.kit import leases
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, BulkWriteError, Database, Doc, update_each
from luthier_common.kit.stream import Part, Reader, Record

log = logging.getLogger(__name__)
POSITIONS = "positions"
EVENTS = "events"
LEASE_S = 5.0
SWEEP_S = 1.0
Projected = Callable[[Kind, Collection[str]], None]
KIND_OF = {topic.name: kind for kind, topic in TOPICS.items()}


@dataclass
class _Held:
    """A partition whose position I hold. `suspects` are entries beyond the log's end, seen in the last sweep."""

    lease: leases.Lease
    offset: int
    suspects: dict[tuple[str, int, int], int] = field(default_factory=dict)


class Projector:
    """Projects the partitions whose position documents it holds, each under its epoch."""

    def __init__(
        self, db: Database, reader: Reader, *, owner: str, clock: Clock, projected: Projected | None = None
    ) -> None:
        """`projected` hears which things have new rows, as soon as they can be read."""
        self._db = db
        self._reader = reader
        self._owner = owner
        self._clock = clock
        self._held: dict[Part, _Held] = {}
        self._renewed_at_s = -1e9
        self._swept_at_s = 0.0
        self._assigned = False
        self._projected = projected

    async def step(self, *, wait_ms: int = 200) -> int:
        """Renew, read once, project, sweep. The number of rows handled."""
        await self._renew()
        if not self._held:
            await asyncio.sleep(wait_ms / 1000)
            return 0
        if not self._assigned:
            await self._reader.seek({part: held.offset for part, held in self._held.items()})
            self._assigned = True
        try:
            batches, out_of_range = await self._reader.read(wait_ms=wait_ms)
        except TransientError:
            self._assigned = False
            raise
        for part in out_of_range:
            await self._restart(part)
        mine = [(part, records) for part, records in batches.items() if part in self._held]
        await asyncio.gather(*(self._project(part, records) for part, records in mine))
        if self._clock.monotonic_s() - self._swept_at_s > SWEEP_S:
            self._swept_at_s = self._clock.monotonic_s()
            await self._sweep()
        return sum(len(records) for records in batches.values())

    async def release(self) -> None:
        for held in self._held.values():
            await leases.release(self._db, held.lease, collection=POSITIONS)
        self._held.clear()

    async def _renew(self) -> None:
        if self._clock.monotonic_s() - self._renewed_at_s < LEASE_S / 3:
            return
        before = set(self._held)
        parts = [Part(topic.name, number) for topic in TOPICS.values() for number in range(topic.num_partitions)]
        await asyncio.gather(*(self._renew_one(part) for part in parts))
        self._renewed_at_s = self._clock.monotonic_s()
        if set(self._held) != before:
            self._assigned = False

    async def _renew_one(self, part: Part) -> None:
        name = f"{part.topic}/{part.partition}"
        lease = await leases.acquire(self._db, name, self._owner, LEASE_S, collection=POSITIONS)
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
        await self._move(part, start)
        self._assigned = False

    async def _move(self, part: Part, offset: int) -> None:
        held = self._held[part]
        name = f"{part.topic}/{part.partition}"
        mine = {"_id": name, "owner": self._owner, "epoch": held.lease.epoch}
        moved = await self._db[POSITIONS].update_one(mine, {"$set": {"offset": offset}})
        if moved.matched_count:
            held.offset = offset
        else:
            self._held.pop(part, None)
            self._assigned = False

    async def _project(self, part: Part, records: list[Record]) -> None:
        rows = [row for record in records if (row := _row(part, record)) is not None]
        present = await self._insert(rows)
        if self._projected is not None and present:
            self._projected(KIND_OF[part.topic], {row["thing"] for row in present})
        await failpoint("projector.after_insert")
        by_thing: dict[str, list[int]] = defaultdict(list)
        for row in present:
            by_thing[row["thing"]].append(row["seq"])
        kind = KIND_OF[part.topic]
        await self._trim(kind, by_thing)
        await failpoint("projector.after_trim")
        if records:
            await self._move(part, records[-1].offset + 1)

    async def _insert(self, rows: list[Doc]) -> list[Doc]:
        """Insert what is new; the rows that are now in the list with this very content."""
        if not rows:
            return []
        try:
            await self._db[EVENTS].insert_many(rows, ordered=False)
        except BulkWriteError as error:
            failed = {fault["index"] for fault in error.details["writeErrors"]}
            is_unsure = bool(error.details["writeConcernErrors"])  # written, but it may not survive: nothing to trim by
            if is_unsure or any(fault["code"] != 11000 for fault in error.details["writeErrors"]):
                raise TransientError("event rows could not be written") from error
            known = [rows[index] for index in sorted(failed)]
            return [row for index, row in enumerate(rows) if index not in failed] + await self._equal(known)
        return rows

    async def _equal(self, rows: list[Doc]) -> list[Doc]:
        stored = {
            doc["_id"]: doc["sha256"]
            async for doc in self._db[EVENTS].find({"_id": {"$in": [row["_id"] for row in rows]}}, {"sha256": 1})
        }
        equal = [row for row in rows if stored.get(row["_id"]) == row["sha256"]]
        for row in rows:
            if row["_id"] not in stored:
                log.error("alarm: a second terminal fact was refused", extra={"fact": row["_id"]})
            elif stored[row["_id"]] != row["sha256"]:
                log.error("alarm: a fact came twice with different content", extra={"fact": row["_id"]})
        return equal

    async def _trim(self, kind: Kind, seqs_by_thing: Mapping[str, list[int]]) -> None:
        await update_each(self._db[COLLECTIONS[kind]], {thing: _trimming(s) for thing, s in seqs_by_thing.items()})

    async def _sweep(self) -> None:
        for part, held in list(self._held.items()):
            end = self._reader.log_end(part)
            if end is None:
                continue
            mark, fetched_at_ms = end
            if mark < held.offset:
                await self._restart(part)
                continue
            await self._judge(part, held, mark, fetched_at_ms)

    async def _judge(self, part: Part, held: _Held, mark: int, fetched_at_ms: int) -> None:
        """Find published entries that the log has lost, and hand them back to the relay."""
        kind = KIND_OF[part.topic]
        collection = self._db[COLLECTIONS[kind]]
        query = {"part": part.partition, "pend": True}
        suspects: dict[tuple[str, int, int], int] = {}
        async for thing in collection.find(query, {"outbox.seq": 1, "outbox.offset": 1}):
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
                        suspects[(thing["_id"], seq, offset)] = fetched_at_ms
        held.suspects = suspects

    async def _passed(self, kind: Kind, thing: str, seq: int, offset: int) -> None:
        if await self._db[EVENTS].find_one({"_id": f"{kind}/{thing}/{seq}"}, {"_id": 1}):
            await self._trim(kind, {thing: [seq]})
        else:
            await self._unnote(kind, thing, seq, offset)

    async def _unnote(self, kind: Kind, thing: str, seq: int, offset: int) -> None:
        entry = {"outbox": {"$elemMatch": {"seq": seq, "offset": offset}}}
        unset = {"$set": {"outbox.$.offset": None, "outbox.$.partition": None, "unsent": True}}
        await self._db[COLLECTIONS[kind]].update_one({"_id": thing, **entry}, unset)
        log.warning(
            "a published fact was lost by the broker; it is sent again", extra={"fact": f"{kind}/{thing}/{seq}"}
        )


def _trimming(seqs: list[int]) -> list[Doc]:
    """The update that takes entries out of a thing's outbox."""
    kept = {"$filter": {"input": "$outbox", "as": "e", "cond": {"$not": [{"$in": ["$$e.seq", seqs]}]}}}
    return [{"$set": {"outbox": kept}}, {"$set": flags()}]


def _row(part: Part, record: Record) -> Doc | None:
    envelope = None
    with suppress(ValueError):
        envelope = read_envelope(record.value, record.headers)
    if envelope is None:
        log.error("a message is no fact", extra={"at": f"{part.topic}/{part.partition}/{record.offset}"})
        return None
    return event_row(envelope, json.loads(record.value), part.partition, record.offset)


def event_row(envelope: Envelope, body: dict[str, Any], partition: int, offset: int) -> Doc:
    """The row of the event list: the raw body, the fields it is found by, and where it lies on the topic."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    row: Doc = {
        "_id": envelope.id,
        "kind": str(envelope.kind),
        "thing": envelope.thing,
        "seq": envelope.seq,
        "type": envelope.type,
        "at": envelope.at,
        "generation": envelope.generation,
        "org": envelope.org,
        "project": envelope.project,
        "body": body,
        "trace": envelope.trace,
        "partition": partition,
        "offset": offset,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return row | ({"terminal": True} if envelope.terminal else {})


async def run_projector(projector: Projector, stopping: asyncio.Event, beat: Any) -> None:
    """Project until stopped. Errors of servers are waited out; position and rows make every repetition harmless."""
    while not stopping.is_set():
        try:
            await projector.step()
            beat()
        except OUTAGES as error:
            beat()  # alive and waiting: a restart would not bring the servers back
            log.warning("the projector waits: %s", error)
            await asyncio.sleep(0.5)
    await projector.release()
