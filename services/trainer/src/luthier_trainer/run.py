"""One attempt of a job on this node, from its claim to freed slots: lease, preparation, child, ending.

The lease is renewed all the while, and its reply says what is wanted. Slots are freed only when the child is reaped.
"""

import asyncio
import logging
import signal
import time
from contextlib import suppress

from luthier_common.contract.events import RunFact, RunPaused
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.logs import bind
from luthier_common.kit.objects import ObjectStore
from luthier_common.kit.room import TRANSIENT_ERRORS, is_transient
from luthier_common.kit.telemetry import linked_trace, span_of
from luthier_trainer.domain import Assignment, AttemptOverError, failure_of, run_failed, tells_of_node
from luthier_trainer.executor import LOG_FILE, Child, Executor
from luthier_trainer.insisting import Insist
from luthier_trainer.memory import OomKills
from luthier_trainer.preparation import Preparation
from luthier_trainer.protocol import Failed, Finished, Paused
from luthier_trainer.settings import TrainerSettings
from luthier_trainer.store import Store
from luthier_trainer.telemetry import forget_run
from luthier_trainer.telling import Teller
from luthier_trainer.transfers import LOG_OBJECT, PreparationError, upload_run_file
from luthier_trainer.workplace import Workplace

log = logging.getLogger(__name__)


class Run:
    """`execute` is the whole life. `poke` looks at the lease now; `leave` ends the run because the node stops."""

    def __init__(
        self,
        assignment: Assignment,
        store: Store,
        objects: ObjectStore,
        workplace: Workplace,
        executor: Executor,
        settings: TrainerSettings,
        gpus: tuple[str, ...],
    ) -> None:
        self._run = assignment
        self._store = store
        self._objects = objects
        self._workplace = workplace
        self._executor = executor
        self._settings = settings
        self._gpus = gpus
        self._child: Child | None = None
        self._teller: Teller | None = None
        self._work: asyncio.Task[RunFact] | None = None
        self._killing: asyncio.TimerHandle | None = None
        self._poked = asyncio.Event()
        self._is_over = False
        self._is_pausing = False
        self._is_leaving = False
        self._is_overdue = False
        self._is_given_up = False
        self._insist = Insist(settings.unreachable_cap_s, lambda: self._is_over)

    @property
    def slots(self) -> tuple[int, ...]:
        """Those of this node that the attempt was placed on."""
        return self._run.claim.slots

    def poke(self) -> None:
        """Something about the job has changed: ask now what is wanted."""
        self._poked.set()

    def leave(self) -> None:
        """The node stops: save, and go back to the queue."""
        self._is_leaving = True
        self._pause_work()

    def give_up(self) -> None:
        """The time is over: what was not told yet is lost, and the node's next start says so."""
        self._is_given_up = True

    async def execute(self) -> None:
        """Run the attempt to its end, whatever that is, and free its slots."""
        claim = self._run.claim
        fields: dict[str, str | int] = {"job_id": claim.job_id, "attempt": claim.attempt}
        named = {f"luthier.{name.replace('_', '.')}": value for name, value in fields.items()}
        with bind(**fields), linked_trace("trainer.run", self._run.trace, named):
            lease = asyncio.create_task(self._keep_lease())
            ending: RunFact | None = None
            try:
                ending = await self._work_to_end()
                await self._reap()
                if ending is not None:
                    log.info("the run ends: %s", ending.type)
                    await failpoint("trainer.before_ending")
                    await self._insist(lambda: self._store.state(claim, ending, op_id=ending.type))
                    await failpoint("trainer.after_ending")
            finally:
                self._is_over = True
                lease.cancel()
                await self._reap()
                forget_run(claim.job_id)
                await self._keep_log()
                insist = Insist(self._settings.unreachable_cap_s, lambda: self._is_given_up)
                works = tells_of_node(ending, self._saved_step is not None)
                await insist(lambda: self._store.free(claim, works=works))
                self._workplace.remove(claim)

    async def _work_to_end(self) -> RunFact | None:
        """The fact that ends the attempt; None when it is no longer ours to say."""
        if await self._insist(self._renew) is None:
            return None
        self._work = asyncio.create_task(self._train())
        if self._is_leaving or self._is_pausing:
            self._pause_work()
        await asyncio.wait({self._work})
        if self._work.cancelled():
            return None if self._is_over else self._stopped_early()
        return self._work.result()

    async def _train(self) -> RunFact:
        try:
            return await self._train_or_raise()
        except PreparationError as error:
            return run_failed(error.reason, error.message)
        except AttemptOverError as error:
            log.info("the attempt is over: %s", error)
            self._is_over = True
            raise asyncio.CancelledError from error
        # The edge of a run: whatever it is, the job must hear of it.
        except Exception as error:
            log.exception("the run failed")
            if is_transient(error):
                return run_failed(FailureReason.STORAGE)
            return run_failed(FailureReason.INTERNAL, type(error).__name__)

    async def _train_or_raise(self) -> RunFact:
        if self._is_over:
            raise AttemptOverError("it ended before it began")
        directory = self._workplace.make(self._run.claim)
        preparation = Preparation(self._run, self._store, self._objects, self._settings)
        with span_of("trainer.prepare"):
            await self._insist(lambda: preparation.prepare(directory, bool(self._gpus)))
        await failpoint("trainer.before_start")
        num_threads = self._settings.threads_of(len(self._run.claim.slots))
        oom_kills = OomKills()
        self._child = child = await self._executor.start(directory, self._gpus, num_threads)
        await failpoint("trainer.after_start")
        log.info("the child has started")
        if self._is_pausing or self._is_leaving:
            self._pause_child(child)
        self._teller = teller = Teller(
            self._run, self._store, self._objects, self._insist, directory, self._settings.steps_every_s
        )
        await teller.follow(child.reports())
        code = await child.wait()
        await failpoint("trainer.after_child")
        match teller.last:
            case Finished() as report:
                return await teller.finish(report)
            case Paused() as report:
                return self._paused(report)
            case Failed() as report:
                return failure_of(report)
            case _ if self._was_stopped_by_us(code):
                return self._stopped_early()
            case _ if oom_kills.explains(code):
                return run_failed(FailureReason.OUT_OF_MEMORY)
            case _:
                log.error("the child ended without a word", extra={"exit_code": code})
                return run_failed(FailureReason.RUN_CRASHED, f"The training process ended with code {code}.")

    def _paused(self, report: Paused) -> RunFact:
        if self._is_pausing:
            return RunPaused(step=report.step or None)
        if self._is_leaving:
            return _left()
        return run_failed(FailureReason.RUN_CRASHED, "The training process was told to stop by nobody here.")

    def _stopped_early(self) -> RunFact:
        """The ending of a run that was stopped and saved nothing for it: it had not begun, or did not end in time."""
        if not self._is_pausing:
            return _left()
        resumed_from = self._run.checkpoint.step if self._run.checkpoint else None
        return RunPaused(step=self._saved_step or resumed_from)

    def _was_stopped_by_us(self, exit_code: int) -> bool:
        """Asked before it could listen, or killed because its step took longer than the budget: no crash."""
        if exit_code == -signal.SIGTERM:
            return self._is_pausing or self._is_leaving
        return exit_code == -signal.SIGKILL and self._is_overdue

    @property
    def _saved_step(self) -> int | None:
        return None if self._teller is None else self._teller.saved_step

    async def _keep_lease(self) -> None:
        """Renew; do what is wanted. Without an answer for too long nobody can know whose attempt this is: it ends."""
        renewed_at = time.monotonic()
        while not self._is_over:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.renew_s):
                    await self._poked.wait()
            self._poked.clear()
            try:
                wanted = await self._renew()
            except Exception as error:
                if not is_transient(error):
                    raise
                if time.monotonic() - renewed_at > self._settings.unreachable_cap_s:
                    log.exception("the database stays away: %s", type(error).__name__)
                    self._abandon()
                continue
            renewed_at = time.monotonic()
            if wanted is None:
                log.info("the attempt is over: the job says so")
                self._abandon()
            elif wanted == "pause" and not self._is_pausing:
                self._is_pausing = True
                self._pause_work()

    async def _renew(self) -> str | None:
        return await self._store.renew_lease(self._run.claim.job_id, self._run.claim.attempt)

    def _pause_work(self) -> None:
        if self._child is not None:
            self._pause_child(self._child)
        elif self._work is not None:
            self._work.cancel()

    def _pause_child(self, child: Child) -> None:
        child.ask_pause()
        if self._killing is None:
            loop = asyncio.get_running_loop()
            self._killing = loop.call_later(self._settings.pause_budget_s, self._kill_overdue, child)

    def _kill_overdue(self, child: Child) -> None:
        if child.has_ended:
            return
        log.warning("the child did not end within %g s; it is killed", self._settings.pause_budget_s)
        self._is_overdue = True
        child.kill()

    def _abandon(self) -> None:
        """Stop at once and say nothing: others decide about this job now."""
        self._is_over = True
        if self._child is not None:
            self._child.kill()
        if self._work is not None:
            self._work.cancel()

    async def _reap(self) -> None:
        if self._killing is not None:
            self._killing.cancel()
        if self._child is not None:
            self._child.kill()
            await self._child.wait()

    async def _keep_log(self) -> None:
        if self._child is None:
            return
        path = self._workplace.path_of(self._run.claim) / LOG_FILE
        with suppress(*TRANSIENT_ERRORS):
            await upload_run_file(self._store, self._objects, self._run, path, LOG_OBJECT)


def _left() -> RunFact:
    left = run_failed(FailureReason.NODE_RESTARTED, "The node was stopped; the job goes on from its last checkpoint.")
    return left.model_copy(update={"preempted": True})
