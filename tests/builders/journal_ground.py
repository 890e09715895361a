"""A journal in processes of its own over a broker, facts at a steady rate, and what must hold when all are told."""

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from builders import group_member, journal_process
from builders.jobs import JobStory, make_step
from builders.waiting import until
from luthier_common.contract.envelope import read_envelope
from luthier_common.journal.advance import Outcome
from luthier_common.journal.rows import digest_of
from luthier_common.kit.mongo import Database
from luthier_stack.part import tied_to_this_process

CONSUMER = Path(__file__).resolve().parents[2] / "examples/event-consumer/consume.py"
CLUSTER = "proof"
DRAINED_WITHIN_S = 90.0
Listed = list[tuple[str, int, str]]
"""What is told of jobs, by job and seq: job, seq and digest of the message."""


class JournalGround:
    """Starts processes, makes facts and compares. `stories` are the jobs that the facts are about."""

    def __init__(self, db: Database, mongo_url: str, kafka_url: str, folder: Path) -> None:
        self.db = db
        self.kafka_url = kafka_url
        self.stories: list[JobStory] = []
        self._mongo_url = mongo_url
        self._folder = folder
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._last_step = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator["JournalGround"]:
        try:
            yield self
        finally:
            for process in self._processes.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()

    async def start_journal(self, owner: str) -> None:
        where = (self._mongo_url, self.db.name, self.kafka_url, owner, CLUSTER)
        await self._start(owner, sys.executable, str(Path(journal_process.__file__)), *where)

    async def start_member(self, name: str) -> None:
        where = (self._mongo_url, self.db.name, self.kafka_url, name, f"group-{self.db.name}")
        await self._start(name, sys.executable, str(Path(group_member.__file__)), *where)

    async def start_consumer(self, name: str = "consumer") -> None:
        """The example for outsiders, with a history of its own that it keeps over a restart."""
        history = ("--history", str(self._folder / f"{name}.db"))
        await self._start(name, sys.executable, str(CONSUMER), "--kafka", self.kafka_url, *history)

    async def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self._processes.pop(name)
        process.send_signal(number)
        await asyncio.wait_for(process.wait(), 20)

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def is_running(self, name: str) -> bool:
        return self._processes[name].returncode is None

    async def _start(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                *tied_to_this_process(command), stdout=log, stderr=log
            )

    async def begin(self, num_jobs: int) -> None:
        """Jobs in training, whose steps will be told."""
        new = await asyncio.gather(*(JobStory.created(self.db) for _ in range(num_jobs)))
        self.stories += await asyncio.gather(*(story.in_training() for story in new))

    async def tell_steps(self, *, per_second: float, stop: asyncio.Event) -> int:
        """Facts of all jobs in turn until `stop`; how many were accepted."""
        num_told, started_at_s = 0, time.monotonic()
        under_way: set[asyncio.Task[bool]] = set()
        while not stop.is_set():
            self._last_step += 1
            for story in self.stories:
                under_way.add(asyncio.create_task(self._tell(story, self._last_step)))
            done, under_way = await asyncio.wait(under_way)
            num_told += sum(task.result() for task in done)
            behind_s = started_at_s + num_told / per_second - time.monotonic()
            await asyncio.sleep(max(0.0, behind_s))
        return num_told

    @staticmethod
    async def _tell(story: JobStory, step: int) -> bool:
        told = await story.tell(make_step(step), attempt=1)
        assert told.outcome in (Outcome.APPLIED, Outcome.FULL), told.outcome
        return told.applied

    async def drained(self) -> float:
        """Wait until every fact is in the list and no outbox holds one; the seconds that it took."""
        started_at_s = time.monotonic()

        async def is_empty() -> bool:
            return await self.db["jobs"].find_one({"pend": True}, {"_id": 1}) is None

        await until(is_empty, within_s=DRAINED_WITHIN_S, every_s=0.1, what="empty outboxes")
        return time.monotonic() - started_at_s

    async def listed(self) -> Listed:
        """The list; every job's runs from its first fact to its last, and each row is what was written."""
        found: Listed = []
        for story in sorted(self.stories, key=lambda story: story.id):
            rows = await self.db["events"].find({"kind": "job", "thing": story.id}).sort("seq", 1).to_list(None)
            assert [row["seq"] for row in rows] == list(range(1, (await story.doc())["seq"] + 1)), story.id
            assert all(row["sha256"] == digest_of(row["body"]) for row in rows)
            found += [(story.id, row["seq"], row["sha256"]) for row in rows]
        return found

    async def events(self, verb: str) -> tuple[int, str]:
        """Run the operator's command; its status and what it printed."""
        env = {
            "LUTHIER_MONGO_URL": self._mongo_url,
            "LUTHIER_MONGO_DATABASE": self.db.name,
            "LUTHIER_KAFKA_URL": self.kafka_url,
            "LUTHIER_OBJECTS_URL": "file:///unused",
            "LUTHIER_CLUSTER": CLUSTER,
        }
        command = tied_to_this_process((sys.executable, "-m", "luthier_api.admin", "events", verb))
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode or 0, out.decode()

    async def equal_to_the_topics(self) -> None:
        status, said = await self.events("verify")
        assert status == 0, said
        assert "list and topics are equal" in said

    async def rebuilt_equally(self) -> None:
        """An emptied list is filled from the topics alone, to the last byte."""
        before = await self.listed()
        await self.db["events"].delete_many({})
        status, said = await self.events("rebuild")
        assert status == 0, said
        assert await self.listed() == before

    async def history_of(self, name: str, within_s: float = 60.0) -> None:
        """The consumer that runs under this name comes to hold exactly the list."""
        wanted = await self.listed()

        async def is_same() -> bool:
            assert self.is_running(name), f"{name} has ended"
            return self._history(name) == wanted

        await until(is_same, within_s=within_s, every_s=0.3, what=f"the history of {name}")

    def _history(self, name: str) -> Listed:
        path = self._folder / f"{name}.db"
        if not path.exists():
            return []
        query = "select thing, seq, body from fact where told = 1 and thing like 'ftjob%' order by thing, seq"
        with sqlite3.connect(path) as db:
            try:
                rows = db.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return []  # the consumer is about to make its tables
        return [(thing, seq, read_envelope(body.encode()).digest()) for thing, seq, body in rows]
