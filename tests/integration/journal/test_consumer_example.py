"""The runnable consumer that outsiders start from: its history is the event list, whatever happens to it."""

import asyncio
import json
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from builders.jobs import JobStory, make_step
from builders.waiting import until
from luthier_common.contract.envelope import read_envelope
from luthier_common.contract.events import JobCancelled
from luthier_common.contract.topics import TOPICS, Kind, partition_of
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Message, Writer
from luthier_stack.part import tied_to_this_process

Journal = Callable[..., AbstractAsyncContextManager[None]]
CONSUMER = Path(__file__).resolve().parents[3] / "examples/event-consumer/consume.py"


async def start(url: str, history: Path, *flags: str) -> asyncio.subprocess.Process:
    command = (sys.executable, str(CONSUMER), "--kafka", url, "--history", str(history), *flags)
    return await asyncio.create_subprocess_exec(*tied_to_this_process(command), stdout=asyncio.subprocess.PIPE)


async def lines_of(url: str, history: Path) -> list[str]:
    process = await start(url, history, "--until-idle", "3")
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode().splitlines()


def kept(history: Path, job_id: str) -> list[tuple[int, str]]:
    """What was told of a job, in order: seq and digest of the message."""
    with sqlite3.connect(history) as db:
        rows = db.execute("select seq, body from fact where thing = ? and told = 1 order by seq", (job_id,)).fetchall()
    return [(seq, read_envelope(body.encode()).digest()) for seq, body in rows]


async def listed(db: Database, job_id: str) -> list[tuple[int, str]]:
    rows = await db["events"].find({"kind": "job", "thing": job_id}).sort("seq", 1).to_list(None)
    return [(row["seq"], read_envelope(json.dumps(row["body"], default=str).encode()).digest()) for row in rows]


async def emptied(db: Database) -> bool:
    return await db["jobs"].find_one({"pend": True}, {"_id": 1}) is None


@pytest.fixture(params=["kafka_url", "real_kafka_url"])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


async def test_its_history_is_the_event_list_also_over_a_kill(
    db: Database, journal: Journal, broker_url: str, tmp_path: Path
) -> None:
    history = tmp_path / "history.db"
    async with journal(broker_url):
        story = await (await JobStory.created(db)).in_training()
        await until(lambda: emptied(db), what="empty outboxes")
        told = [line for line in await lines_of(broker_url, history) if story.id in line]
        assert [line.split()[2] for line in told] == [str(seq) for seq in range(1, len(told) + 1)]
        assert told[0].split()[3] == "JobCreated"

        process = await start(broker_url, history)
        for step in range(1, 30):
            await story.tell(make_step(step), attempt=1)
        assert process.stdout is not None
        while story.id not in (await asyncio.wait_for(process.stdout.readline(), 30)).decode():
            pass
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await until(lambda: emptied(db), what="empty outboxes")
        await lines_of(broker_url, history)
        assert kept(history, story.id) == await listed(db, story.id)
        assert await lines_of(broker_url, history) == []


async def test_a_record_that_is_no_fact_does_not_stop_it(
    db: Database, journal: Journal, kafka_url: str, tmp_path: Path
) -> None:
    history, writer = tmp_path / "history.db", Writer(kafka_url)
    async with journal(kafka_url):
        story = await JobStory.created(db)
        poison = [b"no json", b"[]", b'{"thing":"x"}', b'{"thing":"x","seq":%d,"type":"t","at":"t"}' % 2**70]
        headers = [("ce_source", b"luthier/other"), ("ce_id", b"x")]
        messages = [Message(story.id.encode(), value, headers) for value in poison]
        messages.append(Message(story.id.encode(), b"{}", [("ce_id", b"\xff")]))
        await writer.send(TOPICS[Kind.JOB].name, partition_of(Kind.JOB, story.id), messages)
        await story.tell(JobCancelled(), op_id="c")
        await until(lambda: emptied(db), what="empty outboxes")
        await lines_of(kafka_url, history)
        assert kept(history, story.id) == await listed(db, story.id)
    await writer.close()
