"""`admin events`: compares the event list with the topics, and fills either of them from the other."""

import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from itertools import islice

from luthier_api.settings import ApiSettings
from luthier_common.journal.replay import Compared, rebuild, republish, verify
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.migrate import source_of
from luthier_common.kit.mongo import Database
from luthier_common.kit.servers import open_database
from luthier_common.kit.stream import Copies, Reader, Writer, ensure_topics

MAX_SHOWN = 5
SCAN_TIMEOUT_S = 300.0


class EventsError(LuthierError):
    """List and topics differ, or one of them could not be filled wholly; the text says what to do."""


async def run(settings: ApiSettings, verb: str) -> None:
    """Do one of `verify`, `rebuild` and `republish`. Raises EventsError where something differs or stays missing."""
    copies = Copies(settings.topic_replication, settings.topic_min_insync)
    kafka = (settings.kafka_url, kafka_access(settings))
    async with open_database(settings, timeout_s=SCAN_TIMEOUT_S) as db:
        await ensure_topics(*kafka, copies=copies)
        source = await source_of(db, settings.cluster)
        async with _reader(settings) as reader:
            match verb:
                case "verify":
                    await verify_events(db, reader, source)
                case "rebuild":
                    await rebuild_events(db, reader, source)
                case _:
                    await republish_events(db, reader, source, Writer(*kafka, copies=copies))


@asynccontextmanager
async def _reader(settings: ApiSettings) -> AsyncIterator[Reader]:
    reader = Reader(settings.kafka_url, kafka_access(settings))
    try:
        yield reader
    finally:
        await reader.close()


async def verify_events(db: Database, reader: Reader, source: str) -> None:
    compared = await verify(db, reader, source)
    for one in compared:
        _tell(
            f"{one.part.topic}/{one.part.partition}  offsets {one.start} to {one.end}: {one.num_compared} compared, "
            f"{len(one.unlisted)} missing in the list, {len(one.untold)} missing on the topic, "
            f"{len(one.different)} different" + _aside(one)
        )
        _show("missing in the list", one.unlisted)
        _show("missing on the topic", one.untold)
        _show("different", one.different)
    if not all(one.is_equal for one in compared):
        raise EventsError("list and topics differ: `rebuild` fills the list, `republish` the topics")
    _tell(f"list and topics are equal: {sum(one.num_compared for one in compared)} facts compared")


def _aside(one: Compared) -> str:
    asides = ((one.num_older, "older than the log"), (one.num_other, "of another source"))
    return "".join(f"; {number} {what}" for number, what in asides if number)


async def rebuild_events(db: Database, reader: Reader, source: str) -> None:
    rebuilt = await rebuild(db, reader, source)
    for one in rebuilt:
        _tell(f"{one.kind}: {one.num_new} rows inserted, {one.num_known} were there, {len(one.refused)} refused")
        _show("refused: the list holds another content, or another end of the same life", one.refused)
    if any(one.refused for one in rebuilt):
        raise EventsError("the list contradicts the topics; nothing was overwritten")
    if incomplete := sum(one.num_incomplete for one in rebuilt):
        raise EventsError(f"{incomplete} things lack facts that the topics do not reach: restore those from a backup")


async def republish_events(db: Database, reader: Reader, source: str, writer: Writer) -> None:
    try:
        done = await republish(db, reader, writer, source)
    finally:
        await writer.close()
    for one in done:
        _tell(f"{one.kind}: {one.num_sent} facts told again")
        _show("damaged, not told", one.damaged)
    if any(one.damaged for one in done):
        raise EventsError("rows were changed after they were written; they were not told")


def _show(what: str, fact_ids: Collection[str]) -> None:
    for fact_id in islice(fact_ids, MAX_SHOWN):
        _tell(f"  {what}: {fact_id}")
    if len(fact_ids) > MAX_SHOWN:
        _tell(f"  and {len(fact_ids) - MAX_SHOWN} more")


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
