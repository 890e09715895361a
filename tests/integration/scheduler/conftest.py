"""Nodes and schedulers over a real database; time is handed in, so a TTL passes when a test says so."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import NodeJoined
from luthier_common.journal.advance import create
from luthier_common.kit.mongo import Database
from luthier_scheduler.cycle import Cycle
from luthier_scheduler.settings import SchedulerSettings
from luthier_scheduler.store import Store


class HandClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def make_cycle(db: Database, clock: HandClock) -> Callable[..., Cycle]:
    def make(**changes: Any) -> Cycle:
        values = {"mongo_url": "mongodb://unused", "kafka_url": "unused", "objects_url": "file:///unused"}
        more = {"lease_ttl_s": 3.0, "retry_rest_s": 0.0} | changes
        settings = SchedulerSettings(**values, internal_token=SecretStr(""), **more)
        return Cycle(Store(db), clock, settings)

    return make


@pytest.fixture
async def base(db: Database) -> str:
    await db["bases"].insert_one(
        {
            "_id": "tiny",
            "digest": "d" * 64,
            "key": f"bases/{'d' * 64}/",
            "files": [],
            "aliases": [],
            "context_length": 256,
        }
    )
    return "tiny"


@pytest.fixture
def join(db: Database) -> Callable[..., Any]:
    async def join_node(name: str, num_slots: int = 1) -> str:
        slots = [{"index": index, "gpu": None, "holder": None} for index in range(num_slots)]
        fields = {
            "org": "system",
            "project": "system",
            "owner": "system",
            "slots": slots,
            "bases": [],
            "draining": False,
        }
        fact = NodeJoined(role="trainer", num_slots=num_slots, device="cpu")
        await create(db, fact, name, fields, actor=Actor(room="trainer"))
        await renew_node(db, name)
        return name

    return join_node


async def renew_node(db: Database, name: str) -> None:
    await db["nodes"].update_one({"_id": name}, [{"$set": {"renewed_at": "$$NOW"}}])
