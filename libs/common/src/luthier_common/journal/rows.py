"""The rows of the event list: made from messages of the topics, inserted once, never changed."""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from luthier_common.contract.envelope import Envelope, read_envelope
from luthier_common.contract.topics import TOPICS
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import DUPLICATE, BulkWriteError, Database, Doc, read_back
from luthier_common.kit.stream import Part, Record

log = logging.getLogger(__name__)
EVENTS = "events"
KIND_OF = {topic.name: kind for kind, topic in TOPICS.items()}
MAX_SEQ = 10_000_000
"""No thing has so many facts; `replay` keeps a bit for each."""
MAX_LEVELS = 100
"""MongoDB refuses what is nested deeper."""


@dataclass(frozen=True)
class Inserted:
    """`new` rows, rows that were there with the same content, and rows that the list `refused`."""

    new: list[Doc]
    known: list[Doc]
    refused: list[Doc]

    @property
    def present(self) -> list[Doc]:
        return self.new + self.known


def is_of(source: str, record: Record) -> bool:
    """Whether `source` told it: another one is another installation, or this one before a backup was restored.

    What names no source is judged by its content.
    """
    return dict(record.headers).get("ce_source", source.encode()) == source.encode()


def row_of(part: Part, record: Record) -> Doc | None:
    """The row of a message; None, and a line in the log, where it is no fact that the list could hold."""
    with suppress(ValueError):
        envelope = read_envelope(record.value, record.headers)
        row = event_row(envelope, json.loads(record.value), part.partition, record.offset)
        if _can_be_listed(row):
            return row
    log.error("a message is no fact", extra={"at": f"{part.topic}/{part.partition}/{record.offset}"})
    return None


def _can_be_listed(row: Doc) -> bool:
    """JSON says more than BSON: one message that cannot be written would stop its partition for ever."""
    if not 1 <= row["seq"] <= MAX_SEQ or _levels(row) > MAX_LEVELS:
        return False
    try:
        return digest_of(read_back(row)["body"]) == str(row["sha256"])
    except (ValueError, TypeError):  # the driver makes an object of its own of what says `$ref`
        return False


def _levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inner), default=0)


def event_row(envelope: Envelope, body: dict[str, Any], partition: int, offset: int) -> Doc:
    """The row of the event list: the raw body, the fields it is found by, and where it lies on the topic."""
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
        "sha256": digest_of(body),
    }
    return row | ({"terminal": True} if envelope.terminal else {})


def value_of(body: dict[str, Any]) -> bytes:
    """The message that a row was made from: the envelope's bytes are canonical, so they can be made again."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(value_of(body)).hexdigest()


async def insert_rows(db: Database, rows: list[Doc]) -> Inserted:
    """Insert what is new. Raises TransientError when it is not known that the rows will stay."""
    if not rows:
        return Inserted([], [], [])
    try:
        await db[EVENTS].insert_many(rows, ordered=False)
    except BulkWriteError as error:
        failed = {fault["index"] for fault in error.details["writeErrors"]}
        is_unsure = bool(error.details["writeConcernErrors"])  # written, but it may not survive: nothing to trim by
        if is_unsure or any(fault["code"] != DUPLICATE for fault in error.details["writeErrors"]):
            raise TransientError("event rows could not be written") from error
        known, refused = await _told_apart(db, [rows[index] for index in sorted(failed)])
        return Inserted([row for index, row in enumerate(rows) if index not in failed], known, refused)
    return Inserted(rows, [], [])


async def _told_apart(db: Database, rows: list[Doc]) -> tuple[list[Doc], list[Doc]]:
    query = {"_id": {"$in": [row["_id"] for row in rows]}}
    stored = {doc["_id"]: doc["sha256"] async for doc in db[EVENTS].find(query, {"sha256": 1})}
    equal = [row for row in rows if stored.get(row["_id"]) == row["sha256"]]
    for row in rows:
        if row["_id"] not in stored:
            log.error("alarm: a second terminal fact was refused", extra={"fact": row["_id"]})
        elif stored[row["_id"]] != row["sha256"]:
            log.error("alarm: a fact came twice with different content", extra={"fact": row["_id"]})
    return equal, [row for row in rows if stored.get(row["_id"]) != row["sha256"]]
