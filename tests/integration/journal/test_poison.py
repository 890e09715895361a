"""Messages that have the shape of a fact and that the event list cannot hold: they block nothing."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from builders.jobs import JobStory
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.contract.topics import TOPICS, Kind, partition_of
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Message, Writer

Journal = Callable[..., AbstractAsyncContextManager[None]]
SOURCE = "luthier/poisoned/1"


def nested(depth: int) -> dict[str, Any]:
    return {"in": nested(depth - 1)} if depth else {}


POISON: dict[str, dict[str, Any]] = {
    "a number of more than 64 bits": {"data": {"x": 2**70}},
    "a seq of more than 64 bits": {"seq": 2**70},
    "a seq that no thing reaches": {"seq": 2**40},
    "a seq before the first": {"seq": -1},
    "a NUL in a name": {"data": {"a\0b": 1}},
    "a time before all times": {"at": "0001-01-01T00:00:00+05:00"},
    "a time after all times": {"at": "9999-12-31T23:59:00-05:00"},
    "a time without a zone": {"at": "2026-01-01T00:00:00"},
    "what the driver reads back as something else": {"data": {"$ref": "jobs", "$id": 1}},
    "deeper than the database goes": {"data": nested(195)},
}


def poison(thing: str, **changed: Any) -> Message:
    fact = {
        "kind": "job", "thing": thing, "seq": 1000, "type": "Odd", "at": "2026-01-01T00:00:00Z", "generation": 1,
        "attempt": 0, "org": "o", "project": "p", "actor": {}, "data": {},
    }  # fmt: skip
    headers = [("ce_source", SOURCE.encode())]
    return Message(thing.encode(), json.dumps(fact | changed, separators=(",", ":")).encode(), headers)


async def test_what_the_list_cannot_hold_is_passed_over(
    db: Database, journal: Journal, kafka_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(kafka_url)
    async with journal(kafka_url, source=SOURCE):
        story = await JobStory.created(db)
        poisons = [poison(story.id, **changed) for changed in POISON.values()]
        topic, part = TOPICS[Kind.JOB].name, partition_of(Kind.JOB, story.id)
        offsets = await writer.send(topic, part, poisons)
        await story.tell(f.JobCancelled(), op_id="c")

        async def told() -> list[int]:
            return sorted([row["seq"] async for row in db["events"].find({"thing": story.id}, {"seq": 1})])

        async def is_told() -> bool:
            return 2 in await told()

        await until(is_told, what="the fact behind them")
        assert await told() == [1, 2]
    passed_over = {getattr(record, "at", None) for record in caplog.records if record.message == "a message is no fact"}
    assert passed_over >= {f"{topic}/{part}/{offset}" for offset in offsets}
    await writer.close()
