"""What runs beside the answers, and what wakes it.

The relay tells what was saved (woken by any write), the projector keeps the event list (woken by the topics), auditor
and sweep look by the clock. Several processes share this work by leases.
"""

import logging

from luthier_api.deps import Process
from luthier_api.observer import Observer
from luthier_api.services.uploads import make_file
from luthier_api.store import END_OF_FILE, release_bytes
from luthier_api.store.deletion import find_unreleased_jobs, let_go
from luthier_api.store.uploads import expire_uploads, find_due_uploads, let_parts_go
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import FileDeleted
from luthier_common.contract.topics import Kind
from luthier_common.journal import telemetry
from luthier_common.journal.advance import advance
from luthier_common.journal.auditor import audit
from luthier_common.journal.projector import Projector, run_projector
from luthier_common.journal.relay import Relay, run_relay
from luthier_common.journal.wake import Wake, wake_on_change
from luthier_common.kit import leases
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.migrate import source_of
from luthier_common.kit.mongo import Database
from luthier_common.kit.room import Room
from luthier_common.kit.stream import Reader, Writer
from luthier_common.kit.telemetry import is_measuring

log = logging.getLogger(__name__)
ACTOR = Actor(room="api")
MAX_SWEPT = 500
HUNG_AFTER_S = 600.0
"""Both loops are silent while a server is away, which no restart cures; only a longer silence is taken for a hang."""


async def start(room: Room, process: Process, writer: Writer, reader: Reader, instance: str) -> None:
    """Spawn the loops of this process."""
    db, settings, clock = process.db, process.settings, process.clock
    source = await source_of(db, settings.cluster)
    wake = Wake()
    relay = Relay(db, writer, owner=instance, source=source, clock=clock)
    heard = process.followers.projected
    projector = Projector(db, reader, owner=instance, clock=clock, source=source, projected=heard, trimmed=relay.forget)
    beat = room.health.beat
    for name in ("relay", "projector"):
        room.health.expect(name, HUNG_AFTER_S)
    room.spawn("relay", run_relay(relay, wake, room.stopping, lambda: beat("relay")))
    room.spawn("projector", run_projector(projector, room.stopping, lambda: beat("projector")))
    room.spawn("changes", wake_on_change(db, wake), grace_s=0)
    room.spawn("auditor", room.every(settings.audit_s, lambda: look_for_gaps(db, instance, settings.audit_s)))
    process.around.start(room)
    if is_measuring():
        telemetry.begin_counting()
        observer = Observer(db, instance, settings.observe_s)
        room.spawn("observer", room.every(settings.observe_s, observer.look), grace_s=0)
    room.spawn("sweep", room.every(settings.sweep_s, lambda: sweep(process, instance)))


async def look_for_gaps(db: Database, instance: str, every_s: float) -> None:
    """One process at a time audits."""
    if await leases.acquire(db, "auditor", instance, every_s) is not None:
        await audit(db)


async def sweep(process: Process, instance: str) -> None:
    """End expired files and uploads, and finish what a crash cut short. What fails keeps nothing else from its turn."""
    if await leases.acquire(process.db, "sweep", instance, process.settings.sweep_s) is None:
        return
    failures: list[Exception] = []
    for step in (_end_files, _release_files, _release_jobs, _end_uploads):
        try:
            await step(process)
        except Exception as error:
            log.warning("%s: %s: %s", step.__name__, type(error).__name__, error)
            failures.append(error)
    if failures:
        raise failures[0]


async def _end_files(process: Process) -> None:
    for file_id in await process.platform.find_expired_files(MAX_SWEPT):
        await advance(process.db, Kind.FILE, file_id, FileDeleted(), actor=ACTOR, also=END_OF_FILE)
        await failpoint("sweep.after_file")


async def _release_files(process: Process) -> None:
    for file_id in await process.platform.find_unreleased_files(MAX_SWEPT):
        await release_bytes(process.db, file_id)


async def _release_jobs(process: Process) -> None:
    for job in await find_unreleased_jobs(process.db):
        await let_go(process.db, job, ACTOR)


async def _end_uploads(process: Process) -> None:
    await expire_uploads(process.db)
    await failpoint("sweep.after_uploads")
    for upload in await find_due_uploads(process.db, MAX_SWEPT):
        if upload["status"] == "completed":
            await make_file(process.db, upload, ACTOR)
        await failpoint("sweep.before_parts")
        await let_parts_go(process.db, upload)
