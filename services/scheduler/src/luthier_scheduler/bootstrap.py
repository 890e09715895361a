"""Wires the room: clients, the leader's lease, the cycle and what wakes it."""

import asyncio
import secrets

from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit import presence
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.mongo import ping
from luthier_common.kit.room import Room
from luthier_common.kit.servers import open_database
from luthier_scheduler.consumers import make_on_fact
from luthier_scheduler.cycle import Cycle
from luthier_scheduler.leader import Leader
from luthier_scheduler.settings import SchedulerSettings
from luthier_scheduler.store import Store
from luthier_scheduler.telemetry import measured_cycle, say_active


async def main(room: Room) -> None:
    settings = SchedulerSettings()
    clock = SystemClock()
    instance = f"scheduler-{secrets.token_hex(4)}"
    db = await room.enter("mongo", open_database(settings))
    room.health.require("mongo", lambda: ping(db))
    leader = Leader(db, clock, instance, settings.leader_ttl_s)
    await room.enter("leader", leader.resigning())
    cycle = Cycle(Store(db), clock, settings)
    wake_cycle = asyncio.Event()

    async def lead() -> None:
        try:
            if await leader.renew():
                cycle.forget()
                wake_cycle.set()
        finally:
            say_active(leader.is_active)

    async def look() -> None:
        if leader.is_active:
            with measured_cycle():
                await cycle.run()

    broker = build_broker(settings.kafka_url, "scheduler", kafka_access(settings))
    hear(broker, [TOPICS[Kind.JOB], TOPICS[Kind.NODE]], make_on_fact(wake_cycle))
    await room.enter("broker", listening(broker))
    room.spawn("lead", room.every(settings.leader_renew_s, lead))
    room.spawn("cycle", room.every(settings.tick_s, look, wake_cycle))
    room.spawn("presence", room.every(settings.renew_s, lambda: presence.announce(db, "scheduler", instance)))
