"""Kinds of things, their collections and their topics: one table, from which topics are made and documented."""

import zlib
from dataclasses import dataclass
from enum import StrEnum

DAY_MS = 24 * 3600 * 1000
RETENTION_MS = 30 * DAY_MS
MAX_FACT_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024


class Kind(StrEnum):
    """The four things that have a life. Each is one document, one life table and one topic."""

    JOB = "job"
    FILE = "file"
    MODEL = "model"
    NODE = "node"


@dataclass(frozen=True)
class Topic:
    """A Kafka topic: never compacted, key = the thing's id, partition count fixed (a change would break order)."""

    name: str
    num_partitions: int
    purpose: str
    retention_ms: int = RETENTION_MS
    max_message_bytes: int = MAX_MESSAGE_BYTES


TOPICS: dict[Kind, Topic] = {
    Kind.JOB: Topic("luthier.job-events.v1", 4, "Everything that happens to fine-tuning jobs"),
    Kind.FILE: Topic("luthier.file-events.v1", 2, "Uploads, verdicts and deletions of files"),
    Kind.MODEL: Topic("luthier.model-events.v1", 2, "Models staged, published and deleted"),
    Kind.NODE: Topic("luthier.node-events.v1", 1, "Trainer and inference nodes that join, leave or are lost"),
}
DEAD_LETTERS = Topic("luthier.dead-letters.v1", 1, "Messages that a consumer could not read, with the cause in headers")
ALL_TOPICS: tuple[Topic, ...] = (*TOPICS.values(), DEAD_LETTERS)

COLLECTIONS: dict[Kind, str] = {Kind.JOB: "jobs", Kind.FILE: "files", Kind.MODEL: "models", Kind.NODE: "nodes"}


def partition_of(kind: Kind, thing_id: str) -> int:
    """The partition that holds every fact of one thing: CRC-32 of its id modulo the topic's partition count."""
    return zlib.crc32(thing_id.encode()) % TOPICS[kind].num_partitions
