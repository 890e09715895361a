"""What operators do with list and topics: compare the two, and fill either of them from the other.

All three are safe beside running services and may be repeated: rows are inserted once by their id and never removed,
positions and outboxes stay the projector's, and a fact that is told again is dropped by its id.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from luthier_common.contract.envelope import read_envelope
from luthier_common.contract.topics import TOPICS, Kind, partition_of
from luthier_common.journal.rows import EVENTS, digest_of, insert_rows, is_of, row_of, value_of
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Database, Doc, update_each
from luthier_common.kit.stream import Message, Part, Reader, Record, Writer

ROWS_AT_ONCE = 500
ROWS_A_LOOK = 5000
MOMENT_S = 1.0
STALLED_AFTER_S = 30.0


class Told:
    """What the topic of one kind tells under `source`, from the starts of its logs up to their ends of now."""

    def __init__(self, reader: Reader, kind: Kind, source: str) -> None:
        topic = TOPICS[kind]
        self.kind = kind
        self.parts = [Part(topic.name, number) for number in range(topic.num_partitions)]
        self.starts: dict[Part, int] = {}
        self.ends: dict[Part, int] = {}
        self.num_other: dict[Part, int] = defaultdict(int)
        """Messages of another source, and such as are no facts."""
        self._reader = reader
        self._source = source
        self._named_ends: dict[Part, int] = {}
        self._seqs: dict[str, int] = defaultdict(int)

    async def open(self) -> None:
        await self._reader.seek(dict.fromkeys(self.parts, 0))
        self.starts = {part: start for part, (start, _) in (await self._reader.bounds(self.parts)).items()}
        self.ends = dict(self.starts)
        await self._reader.seek(self.starts)

    def has(self, row: Doc) -> bool:
        """Whether the fact of this row was read. One bit a fact: a whole history fits into memory."""
        return bool(self._seqs.get(row["thing"], 0) >> row["seq"] & 1)

    async def catch_up(self) -> AsyncIterator[tuple[Part, list[Doc]]]:
        """What was told since the last call, as rows. Raises TransientError when a log was lost meanwhile.

        A broker may name an end that lies inside its last batch: so it goes on until nothing comes, or for a moment.
        """
        ends = {part: end for part, (_, end) in (await self._reader.bounds(self.parts)).items()}
        moved_at_s, arrived_at_s = time.monotonic(), None
        while True:
            batches, lost = await self._reader.read(wait_ms=200)
            if lost or any(self._is_shorter(part) for part in self.parts):
                raise TransientError("the logs were cut meanwhile; run the command again")
            for part, records in batches.items():
                yield part, self._rows(part, records)
            self.ends = {part: await self._reader.position(part) for part in self.parts}
            now_s = time.monotonic()
            if all(self.ends[part] >= end for part, end in ends.items()):
                arrived_at_s = arrived_at_s or now_s
                if not batches or now_s - arrived_at_s > MOMENT_S:
                    return
            moved_at_s = now_s if batches else moved_at_s
            if now_s - moved_at_s > STALLED_AFTER_S:
                raise TransientError("the broker no longer answers; run the command again")

    async def pass_over(self) -> None:
        """Catch up, only to know what is there."""
        async for _ in self.catch_up():
            pass

    def _is_shorter(self, part: Part) -> bool:
        """A log that was cut names an earlier end than before; earlier than what was read it may be at any time."""
        if (named := self._reader.log_end(part)) is None:
            return False
        before, self._named_ends[part] = self._named_ends.get(part, 0), named[0]
        return named[0] < before

    def _rows(self, part: Part, records: list[Record]) -> list[Doc]:
        found = (row_of(part, record) if is_of(self._source, record) else None for record in records)
        rows = [row for row in found if row is not None]
        self.num_other[part] += len(records) - len(rows)
        for row in rows:
            self._seqs[row["thing"]] |= 1 << row["seq"]
        return rows


@dataclass
class Compared:
    """One partition against the list, by the ids of the facts that differ."""

    part: Part
    start: int = 0
    end: int = 0
    num_compared: int = 0
    num_other: int = 0
    num_older: int = 0
    """Rows whose facts the log no longer reaches: there is nothing to compare them with."""
    unlisted: dict[str, str] = field(default_factory=dict)
    untold: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return not (self.unlisted or self.untold or self.different)


async def verify(db: Database, reader: Reader, source: str, *, wait_s: float = 10.0) -> list[Compared]:
    """Compare list and topics by content. What is not listed yet is given `wait_s` to come."""
    found: list[Compared] = []
    for kind in TOPICS:
        told = Told(reader, kind, source)
        await told.open()
        compared = {part: Compared(part, start) for part, start in told.starts.items()}

        async def catch_up(told: Told = told, compared: dict[Part, Compared] = compared) -> None:
            async for part, rows in told.catch_up():
                compared[part].num_compared += len(rows)
                await _compare(db, compared[part], {row["_id"]: row["sha256"] for row in rows})

        await catch_up()
        async for rows in _lacking(db, told, catch_up):
            for row in rows:
                one = compared[Part(TOPICS[kind].name, partition_of(kind, row["thing"]))]
                if row["offset"] < one.start:
                    one.num_older += 1
                else:
                    one.untold.append(row["_id"])
        for part, one in compared.items():
            one.end, one.num_other = told.ends[part], told.num_other[part]
        found += compared.values()
    deadline_s = time.monotonic() + wait_s
    while any(one.unlisted for one in found) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.5)
        for one in found:
            await _look_again(db, one)
    return found


async def _compare(db: Database, one: Compared, digests: dict[str, str]) -> None:
    query = {"_id": {"$in": list(digests)}}
    stored = {doc["_id"]: doc async for doc in db[EVENTS].find(query, {"sha256": 1, "body": 1})}
    for fact_id, digest in digests.items():
        row = stored.get(fact_id)
        if row is None:
            one.unlisted[fact_id] = digest
        elif {row["sha256"], digest_of(row["body"])} != {digest}:
            one.different.append(fact_id)


async def _look_again(db: Database, one: Compared) -> None:
    missing, one.unlisted = list(one.unlisted.items()), {}
    for first in range(0, len(missing), ROWS_AT_ONCE):
        await _compare(db, one, dict(missing[first : first + ROWS_AT_ONCE]))


async def _lacking(db: Database, told: Told, catch_up: Callable[[], Awaitable[None]]) -> AsyncIterator[list[Doc]]:
    """Rows whose facts the topic lacks, by thing and in the order of seq.

    A row that is here was told before: only what the topic still does not have after a second look is lacking.
    """
    fields = {"thing": 1, "seq": 1, "offset": 1}
    rows = db[EVENTS].find({"kind": str(told.kind)}, fields).sort([("thing", -1), ("seq", 1)])
    while chunk := await rows.to_list(ROWS_A_LOOK):
        if not all(map(told.has, chunk)):
            await catch_up()
        if lacking := [row for row in chunk if not told.has(row)]:
            yield lacking


@dataclass
class Rebuilt:
    """What a replay of one topic did to the list."""

    kind: Kind
    num_new: int = 0
    num_known: int = 0
    refused: set[str] = field(default_factory=set)
    num_incomplete: int = 0
    """Things whose list does not begin with their first fact, or has holes: the topic does not reach back so far."""


async def rebuild(db: Database, reader: Reader, source: str) -> list[Rebuilt]:
    """Insert every fact that the topics hold and the list lacks. Rows that are there stay as they are."""
    done: list[Rebuilt] = []
    for kind in TOPICS:
        told, one = Told(reader, kind, source), Rebuilt(kind)
        await told.open()
        async for _, rows in told.catch_up():
            inserted = await insert_rows(db, rows)
            one.num_new += len(inserted.new)
            one.num_known += len(inserted.known)
            one.refused |= {row["_id"] for row in inserted.refused}
        one.num_incomplete = await _count_incomplete(db, kind)
        done.append(one)
    return done


async def _count_incomplete(db: Database, kind: Kind) -> int:
    things: list[Doc] = [
        {"$match": {"kind": str(kind)}},
        {"$group": {"_id": "$thing", "rows": {"$sum": 1}, "last": {"$max": "$seq"}}},
        {"$match": {"$expr": {"$lt": ["$rows", "$last"]}}},
        {"$count": "things"},
    ]
    [counted] = await db[EVENTS].aggregate(things, allowDiskUse=True).to_list(None) or [{"things": 0}]
    return int(counted["things"])


@dataclass
class Republished:
    """What one topic was given back. `damaged` rows no longer have the content that they were written with."""

    kind: Kind
    num_sent: int = 0
    damaged: list[str] = field(default_factory=list)


async def republish(db: Database, reader: Reader, writer: Writer, source: str) -> list[Republished]:
    """Tell again what the list holds and the topics lack: the same messages, per thing in the order of seq."""
    done: list[Republished] = []
    for kind in TOPICS:
        told, one = Told(reader, kind, source), Republished(kind)
        await told.open()
        await told.pass_over()
        async for lacking in _lacking(db, told, told.pass_over):
            for first in range(0, len(lacking), ROWS_AT_ONCE):
                fact_ids = [row["_id"] for row in lacking[first : first + ROWS_AT_ONCE]]
                await _tell_again(db, writer, source, one, fact_ids)
        done.append(one)
    return done


async def _tell_again(db: Database, writer: Writer, source: str, one: Republished, fact_ids: list[str]) -> None:
    rows = {row["_id"]: row async for row in db[EVENTS].find({"_id": {"$in": fact_ids}})}
    waiting: dict[int, list[Doc]] = defaultdict(list)
    for row in (rows[fact_id] for fact_id in fact_ids):
        if digest_of(row["body"]) == row["sha256"]:
            waiting[partition_of(one.kind, row["thing"])].append(row)
        else:
            one.damaged.append(row["_id"])
    for number, facts in waiting.items():
        offsets = await writer.send(TOPICS[one.kind].name, number, [_message(row, source) for row in facts])
        places = {row["_id"]: offset for row, offset in zip(facts, offsets, strict=True)}
        await update_each(db[EVENTS], {fact_id: [{"$set": {"offset": place}}] for fact_id, place in places.items()})
        one.num_sent += len(facts)


def _message(row: Doc, source: str) -> Message:
    value = value_of(row["body"])
    trace = row.get("trace")
    headers = [("traceparent", trace.encode())] if trace else []
    return Message(row["thing"].encode(), value, read_envelope(value, headers).headers(source))
