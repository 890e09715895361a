"""What a consumer outside would read: every record that the topics hold now."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from luthier_common.contract.topics import TOPICS
from luthier_common.kit.stream import Part, Reader

EMPTY_READS = 5


class Told(NamedTuple):
    """One record of a topic."""

    fact: str
    value: bytes
    where: str


async def read_topics(kafka_url: str) -> list[Told]:
    """All records of all topics, from the first that the broker still has to the last."""
    reader = Reader(kafka_url)
    parts = [Part(topic.name, number) for topic in TOPICS.values() for number in range(topic.num_partitions)]
    told: list[Told] = []
    try:
        await reader.seek(dict.fromkeys(parts, 0))
        starts = {part: await reader.log_start(part) for part in parts}
        await reader.seek(starts)
        position, num_empty = dict(starts), 0
        while num_empty < EMPTY_READS or not _is_at_end(reader, position):
            batches, out_of_range = await reader.read(wait_ms=200)
            assert not out_of_range, f"the topics shrank while they were read: {out_of_range}"
            num_empty = 0 if batches else num_empty + 1
            for part, records in batches.items():
                for record in records:
                    fact = dict(record.headers).get("ce_id", b"").decode()
                    told.append(Told(fact, record.value, f"{part.topic}/{part.partition}/{record.offset}"))
                    position[part] = record.offset + 1
    finally:
        await reader.close()
    return told


def out_of_order(records: Sequence[Told]) -> list[str]:
    """Facts that a reader from the beginning meets before an older one of the same thing.

    Said twice is no harm; for a log that was never lost, whatever became of those that write it.
    """
    newest, broken = defaultdict[str, int](int), list[str]()
    for record in records:
        thing, _, number = record.fact.rpartition("/")
        seq = int(number)
        if seq > newest[thing] + 1:
            broken.append(f"I2 {record.fact}: it stands on the topic ({record.where}) next after fact {newest[thing]}")
        newest[thing] = max(newest[thing], seq)
    return broken


def _is_at_end(reader: Reader, position: dict[Part, int]) -> bool:
    ends = {part: reader.log_end(part) for part in position}
    return all(end is not None and position[part] >= end[0] for part, end in ends.items())
