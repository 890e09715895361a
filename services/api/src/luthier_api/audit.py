"""The audit log: one row for each changing call, append-only, chained by hashes, durable before the answer is sent.

Each api process writes a chain of its own, so that no two wait for each other. A chain's first row names the newest
row of every other chain: who removes a chain or its end has to change the chains that came after it too. Rows of calls
that end together go into one write. A row holds who did what to which thing, from where and how it ended; never a body
or a key.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import DUPLICATE, OUTAGES, BulkWriteError, Database, Doc

log = logging.getLogger(__name__)
COLLECTION = "audit_log"
OPENED = "open_chain"
NO_HASH = "0" * 64
MAX_KEPT = 10_000
"""So many rows wait for a database that is away; with more, changing calls are refused."""
_HASH_BYTES = 32
_REFUSED: tuple[type[Exception], ...] = (*OUTAGES, BulkWriteError)


def row_hash(row: Mapping[str, Any]) -> str:
    """The hash of a row: over the hash before it and all its other fields, as JSON with sorted names."""
    fields = {name: value for name, value in row.items() if name not in ("hash", "prev")}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    return hashlib.sha256(f"{row['prev']}{text}".encode()).hexdigest()


def chained(instance: str, seq: int, prev: str, fields: Mapping[str, Any]) -> Doc:
    """A row as the next of its chain."""
    row: Doc = {"_id": f"{instance}/{seq}", "instance": instance, "seq": seq, "prev": prev, **fields}
    return row | {"hash": row_hash(row)}


def to_milliseconds(at: datetime) -> datetime:
    """As the database keeps it, so that the hash can be computed again."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


class AuditLog:
    """The chain of this process."""

    def __init__(self, db: Database, instance: str, clock: Clock) -> None:
        self._db = db
        self._instance = instance
        self._clock = clock
        self._seq = 0
        self._prev = NO_HASH
        self._queued: list[Doc] = []
        self._rows: list[Doc] = []
        """Rows that have their place in the chain and are not known to be written."""
        self._next = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._rows) + len(self._queued) >= MAX_KEPT

    async def record(self, fields: Mapping[str, Any]) -> None:
        """Returns when the row is durable, or when the database did not take it; then it waits for the next write."""
        self._queued.append({"at": to_milliseconds(self._clock.now()), **fields})
        tried = self._next
        self._start()
        await tried.wait()

    async def flush(self) -> None:
        """Write what an outage left behind."""
        if self._queued or self._rows:
            self._start()
        if self._writer is not None:
            await asyncio.shield(self._writer)

    def _start(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="audit-write")

    async def _write(self) -> None:
        """One write after the other, each with all that has come meanwhile."""
        while True:
            tried = self._next
            try:
                if self._seq == 0:
                    await self._open()
                tried, self._next = self._next, asyncio.Event()
                queued, self._queued = self._queued, []
                for fields in queued:
                    self._chain(fields)
                await self._insert()
            except _REFUSED as error:
                num_rows = len(self._rows) + len(self._queued)
                log.error("audit rows wait: %s", type(error).__name__, extra={"num_rows": num_rows})  # noqa: TRY400
            finally:
                tried.set()
            if not self._queued or self._next.is_set():
                break
        if self._next.is_set():
            self._next = asyncio.Event()

    async def _open(self) -> None:
        anchors = await find_anchors(self._db, self._instance)
        self._chain({"at": to_milliseconds(self._clock.now()), "operation": OPENED, "anchors": anchors})

    async def _insert(self) -> None:
        rows = list(self._rows)
        if not rows:
            return
        await failpoint("audit.before_write")
        try:
            await self._db[COLLECTION].insert_many(rows, ordered=False)
        except BulkWriteError as error:
            # A row that is there already was written by an insert whose reply was lost.
            details = error.details or {}
            is_known = all(problem.get("code") == DUPLICATE for problem in details.get("writeErrors", [{}]))
            if not is_known or details.get("writeConcernErrors"):
                raise
        await failpoint("audit.after_write")
        del self._rows[: len(rows)]

    def _chain(self, fields: Mapping[str, Any]) -> None:
        row = chained(self._instance, self._seq, self._prev, fields)
        self._rows.append(row)
        self._seq += 1
        self._prev = row["hash"]


async def find_anchors(db: Database, instance: str) -> list[Doc]:
    """The newest row of every other chain."""
    newest: list[Doc] = [
        {"$sort": {"instance": 1, "seq": -1}},
        {"$group": {"_id": "$instance", "seq": {"$first": "$seq"}, "hash": {"$first": "$hash"}}},
        {"$sort": {"_id": 1}},
    ]
    rows = [row async for row in db[COLLECTION].aggregate(newest)]
    return [{"instance": row["_id"], "seq": row["seq"], "hash": row["hash"]} for row in rows if row["_id"] != instance]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a look at all chains found. `broken` names the first row that is not as it was written, and `why`."""

    num_chains: int
    num_rows: int
    broken: str | None = None
    why: str | None = None


async def verify(db: Database) -> Verified:
    """Compute every chain again. A chain's newest rows are proven only by the chains that began after them."""
    rows = db[COLLECTION].find({}).sort([("instance", 1), ("seq", 1)]).batch_size(1000)
    return await verify_rows(rows)


async def verify_rows(rows: AsyncIterator[Doc]) -> Verified:
    """The same over rows in the order of their chains. The first broken row is the answer."""
    num_chains = num_rows = 0
    instance = NO_HASH
    seq, prev = 0, NO_HASH
    hashes: dict[str, bytearray] = {}
    anchors: list[tuple[str, Doc]] = []
    async for row in rows:
        if row.get("instance") != instance:
            instance, seq, prev = str(row.get("instance")), 0, NO_HASH
            num_chains += 1
        num_rows += 1
        if (why := why_broken(row, instance, seq, prev)) is not None:
            return Verified(num_chains, num_rows, str(row["_id"]), why)
        anchors += [(row["_id"], anchor) for anchor in row.get("anchors", [])]
        seq, prev = seq + 1, row["hash"]
        hashes.setdefault(instance, bytearray()).extend(bytes.fromhex(prev))
    for row_id, anchor in anchors:
        begins = anchor["seq"] * _HASH_BYTES
        if hashes.get(anchor["instance"], bytearray())[begins : begins + _HASH_BYTES].hex() != anchor["hash"]:
            missing = f"{anchor['instance']}/{anchor['seq']}"
            return Verified(num_chains, num_rows, missing, f"{row_id} names it, and it is gone or another")
    return Verified(num_chains, num_rows)


def why_broken(row: Mapping[str, Any], instance: str, seq: int, prev: str) -> str | None:
    """What is wrong with a row that should be the next of its chain."""
    if row["_id"] != f"{instance}/{row['seq']}":
        return "its id is not its place"
    if row["seq"] != seq:
        return f"row {seq} of its chain is missing"
    if row.get("prev") != prev:
        return "it does not follow the row before it"
    return None if row.get("hash") == row_hash(row) else "its fields are not those that were written"


def _plain(value: object) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
