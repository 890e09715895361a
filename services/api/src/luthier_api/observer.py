"""What is measured for the whole installation: by one process of the API at a time, the holder of a lease.

The others say nothing, so that nothing is counted twice; while the lease changes hands, queries take the maximum.
What was seen is said as long as the lease lasts that it was seen under: who hangs falls silent by itself.
"""

import time
from collections.abc import Mapping

from luthier_api.store.census import Census
from luthier_common.contract.lifecycle import JOB
from luthier_common.kit import leases
from luthier_common.kit.mongo import Database
from luthier_common.kit.telemetry import LiveGauge

LEASE = "observer"
SIZES_EVERY = 12
"""Sums over all objects are looked up once in so many rounds."""
ROOMS = ("file-validator", "inference", "registry", "scheduler", "trainer")

_jobs = LiveGauge("luthier.jobs", "{job}", "Jobs that have not ended, by phase")
_oldest = LiveGauge("luthier.queue.oldest", "s", "How long the first of the waiting jobs has waited")
_outbox = LiveGauge("luthier.outbox.depth", "{fact}", "Facts that were saved and are not in the event list yet")
_outbox_age = LiveGauge("luthier.outbox.age", "s", "Age of the oldest of them")
_slots = LiveGauge("luthier.slots", "{slot}", "Slots of live trainer nodes, by state")
_nodes = LiveGauge("luthier.nodes", "{node}", "Nodes by role and phase")
_rooms = LiveGauge("luthier.rooms", "{instance}", "Instances of each room that announced themselves of late")
_objects = LiveGauge("luthier.objects.size", "By", "Bytes of all objects in the ledger")
_num_objects = LiveGauge("luthier.objects.stored", "{object}", "Rows of the ledger of objects")
_GAUGES = (_jobs, _oldest, _outbox, _outbox_age, _slots, _nodes, _rooms, _objects, _num_objects)
_LIVE = {phase.name: phase.status for phase in JOB.phases if not phase.final}
_Series = tuple[float, Mapping[str, str]]


class Observer:
    """`look` is one round."""

    def __init__(self, db: Database, instance: str, every_s: float) -> None:
        self._db = db
        self._census = Census(db)
        self._instance = instance
        self._ttl_s = 3 * every_s
        self._round = 0
        self._held_until_s = 0.0

    async def look(self) -> None:
        """Look everything up, or say nothing where another process does, or may: the lease could not be renewed."""
        asked_at_s = time.monotonic()
        if asked_at_s > self._held_until_s:
            self._say_nothing()
        if await leases.acquire(self._db, LEASE, self._instance, self._ttl_s) is None:
            self._say_nothing()
            return
        self._held_until_s = asked_at_s + self._ttl_s
        phases = await self._census.count_jobs(_LIVE)
        _jobs.replace((phases.get(name, 0), {"phase": name, "status": status}) for name, status in _LIVE.items())
        _oldest.set(await self._census.oldest_wait_s())
        outboxes = await self._census.measure_outboxes()
        _outbox.replace((depth, {"kind": kind}) for kind, (depth, _) in outboxes.items())
        _outbox_age.replace((age_s, {"kind": kind}) for kind, (_, age_s) in outboxes.items())
        await self._look_at_nodes()
        present = await self._census.count_rooms()
        _rooms.replace((present.get(room, 0), {"room": room}) for room in ROOMS)
        for gauge in _GAUGES:
            gauge.expire(self._held_until_s)
        self._round += 1
        if self._round % SIZES_EVERY == 1:
            num_objects, num_bytes = await self._census.measure_objects()
            _objects.set(num_bytes)
            _num_objects.set(num_objects)

    def _say_nothing(self) -> None:
        for gauge in _GAUGES:
            gauge.replace(())
            gauge.expire(0.0)
        self._round = 0

    async def _look_at_nodes(self) -> None:
        nodes = await self._census.list_nodes()
        slots: list[_Series] = []
        counts = {(role, phase): 0 for role in ("trainer", "inference") for phase in ("live", "lost")}
        for node in nodes:
            key = (str(node["role"]), str(node["phase"]))
            counts[key] = counts.get(key, 0) + 1
            if key != ("trainer", "live"):
                continue
            used = sum(slot["holder"] is not None for slot in node["slots"])
            free = 0 if node.get("draining") else len(node["slots"]) - used
            named = {"node": str(node["_id"]), "device": str(node["device"])}
            slots += [(used, {**named, "state": "used"}), (free, {**named, "state": "free"})]
        _slots.replace(slots)
        _nodes.replace((count, {"role": role, "phase": phase}) for (role, phase), count in counts.items())
