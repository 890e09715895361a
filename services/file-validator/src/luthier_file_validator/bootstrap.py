"""Wires the room: clients, the two loops and what wakes them."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit import presence
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.mongo import ping
from luthier_common.kit.room import Room
from luthier_common.kit.servers import open_database, open_store
from luthier_file_validator.checker import Checker
from luthier_file_validator.consumers import make_on_fact
from luthier_file_validator.files import FileLoop
from luthier_file_validator.jobs import JobLoop
from luthier_file_validator.settings import FileValidatorSettings
from luthier_file_validator.store import Store
from luthier_file_validator.telemetry import begin_counting
from luthier_file_validator.workers import Workers

ROOM = "file-validator"


async def main(room: Room) -> None:
    settings = FileValidatorSettings()
    instance = f"{ROOM}-{secrets.token_hex(4)}"
    db = await room.enter("mongo", open_database(settings))
    room.health.require("mongo", lambda: ping(db))
    store = Store(db, await room.enter("objects", open_store(settings)))
    checker = Checker(store, settings)
    await room.enter("scratch", _prepared(checker))
    begin_counting()
    wake_files, wake_jobs = asyncio.Event(), asyncio.Event()

    def make_workers(wake: asyncio.Event) -> Workers:
        return Workers(db, SystemClock(), instance, wake, claim_ttl_s=settings.claim_ttl_s, limit=settings.max_parallel)

    file_workers, job_workers = make_workers(wake_files), make_workers(wake_jobs)
    await room.enter("file workers", file_workers.closing())
    await room.enter("job workers", job_workers.closing())
    files = FileLoop(store, checker, file_workers, settings.default_base)
    jobs = JobLoop(store, checker, job_workers, settings)
    broker = build_broker(settings.kafka_url, ROOM, kafka_access(settings))
    hear(broker, [TOPICS[Kind.FILE], TOPICS[Kind.JOB]], make_on_fact(wake_files, wake_jobs))
    await room.enter("broker", listening(broker))
    room.spawn("files", room.every(settings.tick_s, files.look, wake_files))
    room.spawn("jobs", room.every(settings.tick_s, jobs.look, wake_jobs))
    room.spawn("presence", room.every(settings.renew_s, lambda: presence.announce(db, ROOM, instance)))


@asynccontextmanager
async def _prepared(checker: Checker) -> AsyncIterator[None]:
    checker.prepare()
    yield
    checker.leave()
