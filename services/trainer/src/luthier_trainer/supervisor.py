"""The node: it joins, renews its document, and does for every claim on its slots what the claim calls for."""

import asyncio
import logging
import os
import time
from contextlib import suppress

from luthier_common.contract.events import RunPaused
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit import presence
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectStore
from luthier_common.kit.room import TRANSIENT_ERRORS
from luthier_trainer.domain import (
    Assignment,
    Claim,
    NameTakenError,
    NameWatch,
    RunKey,
    Verdict,
    assignment_of,
    claims_of,
    is_ours,
    judge,
    run_failed,
    tells_of_node,
)
from luthier_trainer.executor import Executor
from luthier_trainer.inventory import find_slots
from luthier_trainer.run import Run
from luthier_trainer.settings import TrainerSettings
from luthier_trainer.store import Store
from luthier_trainer.workplace import Workplace

log = logging.getLogger(__name__)
_LEAVE_MARGIN_S = 8.0
_GIVE_UP_S = 4.0
_SAY_LEAVING_S = 8.0


class Supervisor:
    """`look` is one round, made when woken and every few seconds; `renew` and `stop` frame it."""

    def __init__(
        self, store: Store, objects: ObjectStore, workplace: Workplace, executor: Executor, settings: TrainerSettings
    ) -> None:
        self._store = store
        self._objects = objects
        self._workplace = workplace
        self._executor = executor
        self._settings = settings
        self._runs: dict[RunKey, tuple[Run, asyncio.Task[None]]] = {}
        self._has_joined = False
        self._name_watch = NameWatch(settings.lease_ttl_s)
        self._is_stopping = False
        self.wake = asyncio.Event()

    async def renew(self) -> None:
        """Say that the node lives; join first, and again after it was called lost. NameTakenError: it is another's."""
        if self._is_stopping:
            return
        if not self._has_joined or not await self._store.renew():
            await self._join()
        await presence.announce(self._store.db, "trainer", self._store.node)

    async def look(self) -> None:
        """Compare the claims on this node's slots with the runs of this process."""
        if self._is_stopping or not self._has_joined or (seen := await self._store.read_slots()) is None:
            return
        slots, now = seen
        claims = claims_of(slots)
        await failpoint("trainer.after_look")
        jobs = await self._store.read_jobs([claim.job_id for claim in claims])
        for claim in claims:
            job = jobs.get(claim.job_id)
            verdict = judge(claim, job, self._store.node, now, self._settings.lease_ttl_s, home=self._store.home)
            if (held := self._runs.get(claim.key)) is None:
                await self._act(claim, job, verdict, slots)
            elif set(held[0].slots).isdisjoint(claim.slots):
                # Another scheduler claimed for the same attempt: the run's own slots stay as they are.
                if verdict is Verdict.WITHDRAW:
                    await self._act(claim, job, verdict, slots)
            elif not is_ours(claim, job, self._store.node) or (job and job.get("wanted") == "pause"):
                held[0].poke()

    async def stop(self) -> None:
        """Leave: no new runs; those at work save, go back to the queue and free their slots, within the budget."""
        self._is_stopping = True
        # At once: children need the time that a database which is away too would take.
        await asyncio.gather(self._say_leaving(), self._end_runs())

    async def _say_leaving(self) -> None:
        with suppress(*TRANSIENT_ERRORS):
            async with asyncio.timeout(_SAY_LEAVING_S):
                if self._has_joined and await self._store.leave():
                    await presence.leave(self._store.db, "trainer", self._store.node)

    async def _end_runs(self) -> None:
        held = list(self._runs.values())
        for run, _ in held:
            run.leave()
        if not held:
            return
        _, late = await asyncio.wait(
            [task for _, task in held], timeout=self._settings.pause_budget_s + _LEAVE_MARGIN_S
        )
        if not late:
            return
        for run, task in held:
            if task in late:
                run.give_up()
                task.cancel()
        log.error("runs could not be brought to an orderly end", extra={"num_runs": len(late)})
        await asyncio.wait(late, timeout=_GIVE_UP_S)

    async def _join(self) -> None:
        if not self._has_joined:
            await asyncio.to_thread(self._workplace.clear)
        device, slots = await asyncio.to_thread(
            find_slots,
            self._settings.trainer_device,
            self._settings.trainer_cpu_slots,
            os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
        await self._take_name(device, slots)
        await failpoint("trainer.after_join")
        if not await self._store.renew():
            raise TransientError(f"{self._store.node} was called lost while it joined")
        log.info("the node has joined", extra={"device": device, "num_slots": len(slots)})
        self._has_joined = True
        self.wake.set()

    async def _take_name(self, device: str, slots: list[Doc]) -> None:
        """Join, or raise what ends this round, or this process: who died is silent from now on, who renews lives."""
        other = await self._store.join(device, slots)
        if other is None:
            return
        if self._name_watch.has_changed(other):
            raise NameTakenError(self._store.node)
        is_silent = self._name_watch.is_silent(other, time.monotonic())
        if is_silent and await self._store.join(device, slots, silent=other) is None:
            return
        last_heard = "its start" if other.renewed_at is None else f"{other.renewed_at:%H:%M:%S} UTC"
        raise TransientError(
            f"{self._store.node} is the name of a trainer with another home, or of an earlier version, last heard of "
            f"at {last_heard}; it is taken over when that one is silent for {self._settings.lease_ttl_s:g} s"
        )

    async def _act(self, claim: Claim, job: Doc | None, verdict: Verdict, slots: list[Doc]) -> None:
        match verdict:
            case Verdict.WAIT:
                return
            case Verdict.WITHDRAW:
                log.info("a claim is withdrawn", extra={"job_id": claim.job_id, "attempt": claim.attempt})
                await self._store.withdraw(claim)
                return
            case Verdict.START:
                assert job is not None
                # The node may have begun to stop while its claims were read.
                if not self._is_stopping:
                    await self._begin(claim, job, slots)
                return
            case Verdict.LOST:
                fact = run_failed(FailureReason.NODE_RESTARTED)
                await self._store.state(claim, fact, op_id=fact.type)
            case Verdict.PAUSE:
                step = ((job or {}).get("checkpoint") or {}).get("step")
                await self._store.state(claim, RunPaused(step=step), op_id="RunPaused")
            case Verdict.FREE:
                pass
        log.info("slots are freed", extra={"job_id": claim.job_id, "attempt": claim.attempt, "verdict": verdict})
        await self._store.free(claim)

    async def _begin(self, claim: Claim, job: Doc, slots: list[Doc]) -> None:
        try:
            assignment = assignment_of(claim, job)
        except (ValueError, LookupError, TypeError):
            # Newer rooms may place what this trainer cannot read yet: that must not end the node's other runs.
            log.exception("the job cannot be read", extra={"job_id": claim.job_id, "attempt": claim.attempt})
            fact = run_failed(FailureReason.INTERNAL, "The node that was to run the job cannot read it.")
            await self._store.state(claim, fact, op_id=fact.type)
            await self._store.free(claim, works=tells_of_node(fact, has_saved=False))
            return
        self._start(assignment, slots)

    def _start(self, assignment: Assignment, slots: list[Doc]) -> None:
        claim = assignment.claim
        held = [slot for slot in slots if slot["index"] in claim.slots]
        gpus = tuple(slot["gpu"]["uuid"] for slot in held if slot.get("gpu") is not None)
        # One process uses one GPU; several come with torchrun.
        run = Run(
            assignment,
            self._store,
            self._objects,
            self._workplace,
            self._executor,
            self._settings,
            gpus[:1],
        )
        task = asyncio.create_task(run.execute(), name=f"run {claim.job_id} {claim.attempt}")
        self._runs[claim.key] = (run, task)
        task.add_done_callback(lambda done: self._ended(claim, done))

    def _ended(self, claim: Claim, task: asyncio.Task[None]) -> None:
        self._runs.pop(claim.key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a run broke off", exc_info=error, extra={"job_id": claim.job_id, "attempt": claim.attempt})
        self.wake.set()
