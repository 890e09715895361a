"""What the journal measures: facts told, how late they are seen, and what the stream says of jobs.

The projector inserts each fact once, whoever stated it, so that what is counted here is counted once.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from luthier_common.contract.events import (
    DataAccepted,
    JobCancelled,
    JobCreated,
    JobPlaced,
    JobRestarted,
    JobResumed,
    RunFailed,
    RunFinished,
    RunLost,
    RunPaused,
)
from luthier_common.contract.lifecycle import JOB
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.journal.rows import EVENTS, Inserted
from luthier_common.kit.mongo import OUTAGES, Database, Doc
from luthier_common.kit.telemetry import LiveGauge, is_measuring, meter

log = logging.getLogger(__name__)

num_published = meter().create_counter("luthier.relay.published", "{fact}", "Facts that the broker has stored")
num_findings = meter().create_counter("luthier.audit.findings", "{finding}", "What the journal raised an alarm for")
_lag = LiveGauge("luthier.projector.lag", "{record}", "Records of a topic that the event list does not show yet")
_delay = meter().create_histogram("luthier.projector.delay", "s", "From the commit of a fact to its row in the list")
_created = meter().create_counter("luthier.jobs.created", "{job}", "Jobs asked for")
_placed = meter().create_counter("luthier.jobs.placed", "{attempt}", "Attempts that got slots")
_finished = meter().create_counter("luthier.jobs.finished", "{job}", "Jobs that ended, by status")
_job_duration = meter().create_histogram("luthier.job.duration", "s", "From the creation of a job to its end")
_queue_wait = meter().create_histogram("luthier.queue.wait", "s", "From the queue to slots")
_run_duration = meter().create_histogram("luthier.run.duration", "s", "From slots to the end of the attempt")

_FINAL = {phase.name: phase.status for phase in JOB.phases if phase.final}
_STATUS_BY_END = {row.fact.__name__: _FINAL[row.target] for row in JOB.rows if row.target in _FINAL}
_QUEUEING = tuple(shape.__name__ for shape in (DataAccepted, JobResumed, RunLost, RunFailed))
_ENDS_OF_RUN: Mapping[str, str] = {
    RunFinished.__name__: "finished",
    RunFailed.__name__: "failed",
    RunLost.__name__: "lost",
    RunPaused.__name__: "paused",
    JobCancelled.__name__: "cancelled",
}


def begin_counting() -> None:
    """Counters that may stay at zero say so from the start: a series that is absent looks like a service that is."""
    for topic in TOPICS.values():
        num_published.add(0, {"topic": topic.name})
    for what in ("hole", "late", "refused"):
        num_findings.add(0, {"what": what})
    for status in _FINAL.values():
        _finished.add(0, {"status": status})
    _created.add(0)
    _placed.add(0)


def saw_lag(records: Mapping[str, int]) -> None:
    """How far the partitions that this process projects are behind, by topic."""
    _lag.replace((behind, {"topic": topic}) for topic, behind in records.items())


async def saw_rows(db: Database, inserted: Inserted, now: datetime) -> None:
    """Rows that are new in the event list, and those that it refused."""
    if not is_measuring():
        return
    num_findings.add(len(inserted.refused), {"what": "refused"})
    for row in inserted.new:
        _delay.record(max(0.0, (now - row["at"]).total_seconds()), {"topic": TOPICS[Kind(row["kind"])].name})
    try:
        for row in inserted.new:
            if row["kind"] == Kind.JOB:
                await _saw_fact_of_job(db, row)
    except OUTAGES as error:
        log.debug("a fact was not measured: %s", type(error).__name__)


async def _saw_fact_of_job(db: Database, row: Doc) -> None:
    if row["type"] == JobCreated.__name__:
        _created.add(1)
    elif row["type"] == JobPlaced.__name__:
        _placed.add(1)
        if (queued := await _last_before(db, row, _QUEUEING)) is not None:
            _queue_wait.record(_seconds_between(queued, row))
    elif row["type"] in _ENDS_OF_RUN:
        await _saw_end_of_run(db, row)
    if row.get("terminal") and (status := _STATUS_BY_END.get(row["type"])) is not None:
        _finished.add(1, {"status": status})
        if (created := await _last_before(db, row, (JobCreated.__name__, JobRestarted.__name__))) is not None:
            _job_duration.record(_seconds_between(created, row), {"status": status})


async def _saw_end_of_run(db: Database, row: Doc) -> None:
    """A job can be cancelled, or paused, without a run: then its last placement has had an end before."""
    begun = await _last_before(db, row, (JobPlaced.__name__, *_ENDS_OF_RUN))
    if begun is not None and begun["type"] == JobPlaced.__name__:
        _run_duration.record(_seconds_between(begun, row), {"outcome": _ENDS_OF_RUN[row["type"]]})


async def _last_before(db: Database, row: Doc, types: Sequence[str]) -> Doc | None:
    query = {"kind": row["kind"], "thing": row["thing"], "seq": {"$lt": row["seq"]}, "type": {"$in": list(types)}}
    return await db[EVENTS].find_one(query, {"at": 1, "type": 1}, sort=[("seq", -1)])


def _seconds_between(earlier: Doc, later: Doc) -> float:
    return max(0.0, float((later["at"] - earlier["at"]).total_seconds()))
