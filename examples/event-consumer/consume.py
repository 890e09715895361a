"""Follow every fact of Luthier's jobs, files, models and nodes from Kafka into a small SQLite history, each once.

    pip install aiokafka
    python examples/event-consumer/consume.py --kafka 127.0.0.1:9092 --history history.db [--until-idle 5]
    ... --kafka broker:9093 --ca-file ca.pem --user me --password-file secret      # TLS, and SASL with SCRAM-SHA-512

This is all that a consumer outside needs to know:

- Facts come at least once. `ce_source` + `ce_id` name a fact; what was seen before is dropped.
- Per thing (`ce_subject`) `seq` rises by one. A gap means: wait, the rest is coming.
- Position and history are saved in one transaction, so a crash between them loses and doubles nothing.
- A record that is no fact of this shape is passed over: it would come again for ever.
- The last record is read again first: another one in its place means that the broker lost its log, which is then read
  from its start. What is told again is dropped by the first rule.
"""

import argparse
import asyncio
import json
import sqlite3
import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

TOPICS = ("luthier.job-events.v1", "luthier.file-events.v1", "luthier.model-events.v1", "luthier.node-events.v1")
TABLES = """
create table if not exists position (topic text, part integer, last integer, id text, primary key (topic, part));
create table if not exists fact (source text, id text, thing text, seq integer, type text, at text, body text,
                                 told integer default 0, primary key (source, id));
create index if not exists untold on fact (thing, seq) where told = 0;
create table if not exists head (source text, thing text, seq integer, primary key (source, thing));
"""


class History:
    """What was seen, in one SQLite file."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(TABLES)

    def position(self, partition: TopicPartition) -> int:
        """The offset of the last record that was kept; 0 when there is none."""
        row = self._last(partition)
        return row[0] if row else 0

    def continues(self, partition: TopicPartition, record: ConsumerRecord) -> bool:
        """Whether the record fits behind what was kept: false where it stands in the place of another one."""
        row = self._last(partition)
        return row is None or record.offset != row[0] or _id_of(record) == row[1]

    def _last(self, partition: TopicPartition) -> tuple[int, str] | None:
        query = "select last, id from position where topic = ? and part = ?"
        row: tuple[int, str] | None = self._db.execute(query, partition).fetchone()
        return row

    def take(self, records: Iterable[ConsumerRecord]) -> list[str]:
        """Keep the records, each fact once; the lines that may be told now, in order for each thing."""
        self._db.execute("begin immediate")
        try:
            things = {thing for record in records if (thing := self._keep(record))}
            lines = [line for thing in sorted(things) for line in self._tell(*thing)]
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")
        return lines

    def forget(self, partition: TopicPartition) -> None:
        """The log behind this position is gone: read it from its start."""
        self._db.execute("delete from position where topic = ? and part = ?", partition)

    def _keep(self, record: ConsumerRecord) -> tuple[str, str] | None:
        place = (record.topic, record.partition, record.offset, _id_of(record))
        self._db.execute("insert or replace into position values (?, ?, ?, ?)", place)
        try:
            headers = {name: (value or b"").decode() for name, value in record.headers}
            if "ce_id" not in headers:
                return None
            body: dict[str, Any] = json.loads(record.value)
            source, thing, content = headers["ce_source"], str(body["thing"]), json.dumps(body, sort_keys=True)
            row = (source, headers["ce_id"], thing, int(body["seq"]), str(body["type"]), str(body["at"]), content)
            self._db.execute("insert or ignore into fact values (?, ?, ?, ?, ?, ?, ?, 0)", row)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            sys.stderr.write(f"{record.topic}/{record.partition}/{record.offset} is no fact\n")
            return None
        return source, thing

    def _tell(self, source: str, thing: str) -> Iterator[str]:
        """Lines of a thing up to the first gap."""
        row = self._db.execute("select seq from head where source = ? and thing = ?", (source, thing)).fetchone()
        seq = row[0] if row else 0
        waiting = "select id, seq, type, at from fact where source = ? and thing = ? and told = 0 order by seq"
        for fact_id, found, kind, at in self._db.execute(waiting, (source, thing)).fetchall():
            if found != seq + 1:
                break
            seq = found
            self._db.execute("update fact set told = 1 where source = ? and id = ?", (source, fact_id))
            yield f"{at}  {thing}  {seq:>5}  {kind}"
        self._db.execute("insert or replace into head values (?, ?, ?)", (source, thing, seq))


def _id_of(record: ConsumerRecord) -> str:
    return next(((value or b"").decode(errors="replace") for name, value in record.headers if name == "ce_id"), "")


async def follow(kafka: dict[str, Any], history: History, until_idle_s: float | None) -> None:
    """Read all partitions from the saved positions on; without end, unless `until_idle_s` passes without a record."""
    partitions = await _find_partitions(kafka)
    consumer = AIOKafkaConsumer(**kafka, enable_auto_commit=False, auto_offset_reset="none")
    await consumer.start()
    try:
        consumer.assign(partitions)
        await _seek(consumer, history, partitions)
        last = looked = time.monotonic()
        while until_idle_s is None or time.monotonic() - last < until_idle_s:
            try:
                batches = await consumer.getmany(timeout_ms=500, max_records=500)
            except OffsetOutOfRangeError:
                batches = {}
            for partition, records in batches.items():
                if not history.continues(partition, records[0]):
                    history.forget(partition)
                    await consumer.seek_to_beginning(partition)
                elif lines := history.take(records):
                    sys.stdout.writelines(f"{line}\n" for line in lines)
                    last = time.monotonic()
            sys.stdout.flush()
            if not batches and time.monotonic() - looked > 1:
                with suppress(KafkaError):  # the broker is away; it is looked for again
                    await _seek(consumer, history, partitions)
                looked = time.monotonic()
    finally:
        await consumer.stop()


async def _find_partitions(kafka: dict[str, Any]) -> list[TopicPartition]:
    """The partitions of all topics, as soon as these have been made."""
    admin = AIOKafkaAdminClient(**kafka)
    await admin.start()
    try:
        while True:
            described = await admin.describe_topics(list(TOPICS))
            found = {topic["topic"]: [part["partition"] for part in topic["partitions"]] for topic in described}
            if all(found.get(topic) for topic in TOPICS):
                return [TopicPartition(topic, part) for topic in TOPICS for part in sorted(found[topic])]
            await asyncio.sleep(1)
    finally:
        await admin.close()


async def _seek(consumer: AIOKafkaConsumer, history: History, partitions: list[TopicPartition]) -> None:
    """Go to the saved positions; one that the log does not have any more means that the log was lost or is older."""
    first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    for partition in partitions:
        wanted = history.position(partition)
        if wanted >= end[partition]:
            history.forget(partition)
            wanted = 0
        consumer.seek(partition, max(wanted, first[partition]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Follow Luthier's facts.")
    parser.add_argument("--kafka", required=True, help="bootstrap servers, host:port")
    parser.add_argument("--history", default="history.db", help="the SQLite file")
    parser.add_argument("--until-idle", type=float, help="stop after so many seconds without a new fact")
    parser.add_argument("--ca-file", type=Path, help="speak TLS, and trust the authorities in this PEM file")
    parser.add_argument("--user", help="log in with SASL")
    parser.add_argument("--password-file", type=Path, help="the file with the user's password")
    parser.add_argument("--mechanism", default="SCRAM-SHA-512", choices=["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    options = parser.parse_args()
    asyncio.run(follow(_access(options), History(options.history), options.until_idle))


def _access(options: argparse.Namespace) -> dict[str, Any]:
    """How every client reaches Kafka, as aiokafka calls it."""
    tls = "SSL" if options.ca_file else "PLAINTEXT"
    protocol = f"SASL_{tls}" if options.user else tls
    access: dict[str, Any] = {"bootstrap_servers": options.kafka, "security_protocol": protocol}
    if options.ca_file:
        access["ssl_context"] = ssl.create_default_context(cafile=options.ca_file)
    if options.user:
        access["sasl_mechanism"] = options.mechanism
        access["sasl_plain_username"] = options.user
        access["sasl_plain_password"] = options.password_file.read_text().strip()
    return access


if __name__ == "__main__":
    main()
