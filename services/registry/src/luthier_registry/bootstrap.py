"""Wires the room: clients, the catalogue, the loops over jobs and models, and what wakes them."""

import asyncio
import logging
import secrets
from datetime import timedelta

from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit import ledger, presence
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.mongo import ping
from luthier_common.kit.room import TRANSIENT_ERRORS, Room
from luthier_common.kit.servers import open_database, open_store
from luthier_registry.catalogue import Catalogue
from luthier_registry.claims import Claims
from luthier_registry.consumers import make_on_fact
from luthier_registry.register import Registrar
from luthier_registry.settings import RegistrySettings
from luthier_registry.settle import Settler
from luthier_registry.store import Store

log = logging.getLogger(__name__)
# Copying or converting a large model may rightly take this long; who ended it would only have it begin again.
_SLOW_WORK_S = 6 * 3600.0
# A write that is older was left by a process that died.
_UNFINISHED_FOR = timedelta(days=1)


async def main(room: Room) -> None:
    settings = RegistrySettings()
    instance = f"registry-{secrets.token_hex(4)}"
    db = await room.enter("mongo", open_database(settings))
    objects = await room.enter("objects", open_store(settings))
    store, clock = Store(db), SystemClock()
    claims = Claims(db, instance, settings.claim_ttl_s)
    catalogue = Catalogue(store, objects, claims, settings)
    registrar = Registrar(store, objects, claims, clock)
    settler = Settler(store, clock, settings.serving_wait_s)
    wake_staging, wake_settling = asyncio.Event(), asyncio.Event()
    broker = build_broker(settings.kafka_url, "registry", kafka_access(settings))
    hear(broker, [TOPICS[Kind.JOB], TOPICS[Kind.MODEL]], make_on_fact(wake_staging, wake_settling))
    await room.enter("broker", listening(broker))
    room.health.require("mongo", lambda: ping(db))
    room.health.require("objects", objects.check)
    room.health.require("default_base", catalogue.missing)
    room.spawn("bases", room.every(settings.tick_s, catalogue.look, stale_after_s=_SLOW_WORK_S))
    room.spawn("stage", room.every(settings.tick_s, registrar.look, wake_staging, stale_after_s=_SLOW_WORK_S))
    room.spawn("settle", room.every(settings.tick_s, settler.look, wake_settling))

    async def announce() -> None:
        await presence.announce(db, "registry", instance, trouble=catalogue.trouble())

    room.spawn("presence", room.every(settings.renew_s, announce))

    async def sweep() -> None:
        try:
            await ledger.sweep(db, objects)
            await objects.sweep(_UNFINISHED_FOR)
        except TRANSIENT_ERRORS:
            raise
        except Exception:
            # Credentials that may not delete or list must not end the room.
            log.exception("what nobody needs could not be removed")

    room.spawn("sweep", room.every(settings.sweep_s, sweep, stale_after_s=_SLOW_WORK_S))
