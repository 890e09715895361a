"""One look at everything: snapshot, lost leases, decision, deeds. Each step is one method, in this order."""

import asyncio
import logging

from luthier_common.contract.events import JobPlaced, Member, NodeLost, Problem, QueueReasonChanged, RunLost
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.resolve import resolve
from luthier_common.contract.spec import JobSpec, ResolvedHyperparameters
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.telemetry import span_of
from luthier_scheduler.decide import Decision, Placement, Wait, WaitingJob, decide, usual_reason
from luthier_scheduler.settings import SchedulerSettings
from luthier_scheduler.store import Snapshot, Store
from luthier_scheduler.telemetry import say_resting
from luthier_scheduler.watch import Watch

log = logging.getLogger(__name__)
REST_S = 60.0
MAX_REASONS = 200
"""Told in one cycle; the rest are news the next time. A cycle must stay short: it also watches leases."""
REASONS_AT_ONCE = 16
HEAD = 1000
"""So much of the queue is looked at, and has positions, while no slot is free behind it."""
FURTHER = 4
"""Where one is, so many times as much is read the next time, until the queue or the free slots end."""


class Cycle:
    def __init__(self, store: Store, clock: Clock, settings: SchedulerSettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._runs = Watch[tuple[str, int]](settings.lease_ttl_s)
        self._nodes = Watch[str](settings.lease_ttl_s)
        self._positions_at_s: float | None = None
        self._rests_until_s: dict[str, float] = {}
        self._resting_nodes: frozenset[str] = frozenset()

    def forget(self) -> None:
        """Begin to watch anew: for an instance that has just become active, or after an outage."""
        self._runs.forget()
        self._nodes.forget()

    async def run(self) -> None:
        """Do one cycle. Raises a driver error when the database is away; what was decided may then stand half done."""
        try:
            snapshot, decision = await self._look(HEAD)
            await failpoint("scheduler.after_snapshot")
            await self._lose_silent_runs(snapshot)
            await self._lose_silent_nodes(snapshot)
            self._note_resting(decision.resting_nodes)
            await self._fail_exhausted(decision)
            await self._place(decision)
            await self._tell_reasons(decision)
            await self._write_positions(decision)
        except Exception:
            self.forget()
            raise

    async def _look(self, most: int) -> tuple[Snapshot, Decision]:
        """As much of the queue as free slots reach, and of what stands behind that, who is to be told a reason."""
        rest_s = self._settings.retry_rest_s
        snapshot = await self._store.read_snapshot(most)
        behind: tuple[WaitingJob, ...] = ()
        if snapshot.is_cut:
            usual = usual_reason(snapshot.nodes, rest_s)
            behind = await self._store.read_behind(snapshot.waiting, usual, MAX_REASONS)
        decision = decide(
            self._placeable(snapshot.waiting),
            snapshot.nodes,
            max_strikes=self._settings.max_strikes,
            retry_rest_s=rest_s,
            behind=behind,
        )
        return await self._look(most * FURTHER) if snapshot.is_cut and decision.has_room else (snapshot, decision)

    async def _lose_silent_runs(self, snapshot: Snapshot) -> None:
        held = {(run.job_id, run.attempt): run for run in snapshot.held}
        for key in self._runs.look({key: run.lease for key, run in held.items()}, self._clock.monotonic_s()):
            run = held[key]
            fact = RunLost(reason=FailureReason.LEASE_EXPIRED, last_step=run.last_step)
            await failpoint("scheduler.before_run_lost")
            lost = await self._store.state_of_job(run.job_id, fact, attempt=run.attempt, match={"lease": run.lease})
            if lost.applied:
                log.warning("the run is lost", extra={"job_id": run.job_id, "attempt": run.attempt})

    async def _lose_silent_nodes(self, snapshot: Snapshot) -> None:
        for node_id in self._nodes.look(snapshot.renewals, self._clock.monotonic_s()):
            await failpoint("scheduler.before_node_lost")
            lost = await self._store.state_of_node(
                node_id, NodeLost(), match={"renewed_at": snapshot.renewals[node_id]}
            )
            if lost.applied:
                log.warning("the node is lost", extra={"node": node_id})

    def _note_resting(self, nodes: frozenset[str]) -> None:
        for node_id in sorted(nodes - self._resting_nodes):
            log.warning("the node rests: the last runs there failed, of several jobs", extra={"node": node_id})
        self._resting_nodes = nodes
        say_resting(len(nodes))

    async def _fail_exhausted(self, decision: Decision) -> None:
        for job_id in decision.exhausted:
            problem = Problem(
                code=FailureReason.ATTEMPTS_EXHAUSTED, message=FailureReason.ATTEMPTS_EXHAUSTED.sentence, retryable=True
            )
            await failpoint("scheduler.before_exhausted")
            await self._store.fail_exhausted(job_id, problem, self._settings.max_strikes)

    async def _place(self, decision: Decision) -> None:
        for placement in decision.placements:
            job = await self._store.read_job(placement.job_id)
            if job is None or job["phase"] != "waiting" or job["attempt"] + 1 != placement.attempt:
                continue
            try:
                named = {"job.id": placement.job_id, "node": placement.node_id}
                with span_of("scheduler.place", job.get("trace"), {**named, "attempt": placement.attempt}):
                    await self._place_job(placement, job)
            except (ValueError, LookupError, TypeError):
                # One job that cannot be read must not keep all others from being placed, nor the slots it would get.
                self._rests_until_s[placement.job_id] = self._clock.monotonic_s() + REST_S
                log.exception("the job cannot be placed", extra={"job_id": placement.job_id})

    def _placeable(self, waiting: tuple[WaitingJob, ...]) -> tuple[WaitingJob, ...]:
        now_s = self._clock.monotonic_s()
        self._rests_until_s = {job_id: until_s for job_id, until_s in self._rests_until_s.items() if until_s > now_s}
        return tuple(job for job in waiting if job.id not in self._rests_until_s)

    async def _place_job(self, placement: Placement, job: Doc) -> None:
        pinned = await self._pin(job)
        if isinstance(pinned, Problem):
            await self._store.fail_waiting(job, pinned)
            return
        resolved, base_digest = pinned
        fact = JobPlaced(
            attempt=placement.attempt,
            members=(Member(node=placement.node_id, slots=placement.slots),),
            resumes_from_step=(job.get("checkpoint") or {}).get("step"),
            resolved=resolved,
            base_digest=base_digest,
        )
        await failpoint("scheduler.before_place")
        if await self._store.place(placement, fact):
            log.info(
                "placed", extra={"job_id": placement.job_id, "attempt": placement.attempt, "node": placement.node_id}
            )

    async def _pin(self, job: Doc) -> tuple[ResolvedHyperparameters, str] | Problem:
        """What the first placement pinned, or is to pin now; a problem when that is impossible."""
        if job.get("resolved") and job.get("base_digest"):
            return ResolvedHyperparameters.model_validate(job["resolved"]), str(job["base_digest"])
        training = (job.get("datasets") or {}).get("training")
        if training is None:
            # A job that was restarted though its files had never been accepted.
            message = "Its files were never accepted; create a new job."
            return Problem(code=FailureReason.INVALID_FILE, message=message, param="training_file", owner="user")
        spec = JobSpec.model_validate(job["spec"])
        base = await self._store.read_base(spec.model)
        if base is None:
            return Problem(code=FailureReason.BASE_MISSING, message=FailureReason.BASE_MISSING.sentence, param="model")
        return resolve(spec, training["num_examples"], base["context_length"]), str(base["digest"])

    async def _tell_reasons(self, decision: Decision) -> None:
        news = [wait for wait in decision.waits if wait.is_news][:MAX_REASONS]
        for start in range(0, len(news), REASONS_AT_ONCE):
            await asyncio.gather(
                *(
                    self._store.tell_reason(wait.job_id, QueueReasonChanged(reason=wait.reason, message=wait.message))
                    for wait in news[start : start + REASONS_AT_ONCE]
                )
            )

    async def _write_positions(self, decision: Decision) -> None:
        now_s = self._clock.monotonic_s()
        is_early = (
            self._positions_at_s is not None and now_s - self._positions_at_s < self._settings.position_interval_s
        )
        moved = _from_first_moved(decision.waits)
        if is_early or moved is None:
            return
        self._positions_at_s = now_s
        await failpoint("scheduler.before_positions")
        first, job_ids = moved
        await self._store.write_positions(job_ids, first=first)


def _from_first_moved(waits: tuple[Wait, ...]) -> tuple[int, list[str]] | None:
    """The first position that changed, and the jobs from there on; None where none did."""
    counted = [wait for wait in waits if wait.position is not None]
    first = next((number for number, wait in enumerate(counted) if wait.is_moved), None)
    return None if first is None else (first + 1, [wait.job_id for wait in counted[first:]])
