"""Wires the room: clients, the node's directory, its loops, and the order of its stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.mongo import ping
from luthier_common.kit.room import Room
from luthier_common.kit.servers import open_database, open_store
from luthier_trainer.consumers import make_on_fact
from luthier_trainer.executor import Executor, LocalExecutor
from luthier_trainer.memory import warn_of_group_kills
from luthier_trainer.settings import TrainerSettings
from luthier_trainer.store import Store
from luthier_trainer.supervisor import Supervisor
from luthier_trainer.workplace import Workplace

STOP_AFTER_S = 115.0


async def main(room: Room, executor: Executor | None = None) -> None:
    """The supervisor of one node; `executor` starts its runs, as children of this process unless told otherwise."""
    settings = TrainerSettings()
    warn_of_group_kills()
    workplace = Workplace(settings.home, settings.trainer_node)
    await room.enter("workplace", _held(workplace))
    db = await room.enter("mongo", open_database(settings))
    objects = await room.enter("objects", open_store(settings))
    room.health.require("mongo", lambda: ping(db))
    room.health.require("objects", objects.check)
    store = Store(db, settings.trainer_node, workplace.identity())
    executor = executor or LocalExecutor()
    supervisor = Supervisor(store, objects, workplace, executor, settings)
    broker = build_broker(settings.kafka_url, "trainer", kafka_access(settings))
    hear(broker, [TOPICS[Kind.JOB]], make_on_fact(supervisor.wake))
    await room.enter("broker", listening(broker))

    async def end_runs() -> None:
        await room.stopping.wait()
        await supervisor.stop()

    room.spawn("renew", room.every(settings.renew_s, supervisor.renew))
    room.spawn("look", room.every(settings.tick_s, supervisor.look, supervisor.wake))
    room.spawn("runs", end_runs())


@asynccontextmanager
async def _held(workplace: Workplace) -> AsyncIterator[None]:
    with workplace.held():
        yield
