"""A child's reports as facts and objects, in order: steps in batches, checkpoints uploaded before they are named."""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from luthier_common.contract.events import Blob, CheckpointSaved, RunFinished
from luthier_common.journal.advance import Advanced, Outcome
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.objects import ObjectStore
from luthier_common.kit.telemetry import current_traceparent, span_of
from luthier_trainer.domain import (
    Assignment,
    AttemptOverError,
    run_started,
    series_row,
    step_completed,
    thin,
    validation_completed,
)
from luthier_trainer.insisting import Insist
from luthier_trainer.protocol import (
    CheckpointWritten,
    Evaluated,
    Failed,
    Finished,
    Paused,
    Progress,
    Started,
    Step,
)
from luthier_trainer.store import Store
from luthier_trainer.telemetry import RunMeter, saw_checkpoint
from luthier_trainer.transfers import METRICS_FILE, upload_directory, upload_run_file

log = logging.getLogger(__name__)
KEEP_CHECKPOINTS = 2
_MAX_BATCH = 100


class Teller:
    """Reads one child's reports to their end. `insist` repeats what failed for a while."""

    def __init__(
        self, run: Assignment, store: Store, objects: ObjectStore, insist: Insist, directory: Path, every_s: float
    ) -> None:
        self._run = run
        self._store = store
        self._objects = objects
        self._insist = insist
        self._metrics_path = directory / METRICS_FILE
        self._every_s = every_s
        self._reports: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._steps: list[Step] = []
        self._told_at = float("-inf")
        self._last_step = run.last_step
        self._total_steps = run.total_steps
        self._uploaded: list[Path] = []
        self._interim_keys: list[str] = []
        self._written_step = 0
        self._meter = RunMeter(run.claim.job_id, run.claim.attempt)
        self.saved_step: int | None = None
        """Of the last checkpoint of this attempt that the job was told of."""
        self.last: Finished | Paused | Failed | None = None

    async def follow(self, reports: AsyncIterator[Progress]) -> None:
        """Tell everything; raises AttemptOverError when the attempt is no longer the job's."""

        async def read() -> None:
            try:
                async for report in reports:
                    if isinstance(report, CheckpointWritten):
                        self._written_step = report.step
                    self._reports.put_nowait(report)
            finally:
                self._reports.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (report := await self._next()) is not None:
                await self._take(report)
            await self._tell_all_steps()
            await reading
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    async def finish(self, report: Finished) -> RunFinished:
        """Upload the model and the series; the fact that says so."""
        await failpoint("trainer.before_finish")
        key = f"{self._run.prefix}artifact/"
        blob = await self._upload(report.directory, key, report.manifest_sha256)
        metrics_key = await self._upload_metrics()
        training = json.loads((report.directory / "training.json").read_bytes())
        assert report.train_loss is not None, "a finished run made a step, in this attempt or an earlier one"
        return RunFinished(
            step=report.step,
            artifact=blob,
            trained_tokens=report.trained_tokens,
            train_loss=report.train_loss,
            valid_loss=report.metrics.get("full_valid_loss"),
            metrics_key=metrics_key,
            library_versions=training["versions"],
        )

    async def _next(self) -> Progress | None:
        while True:
            due_s = self._told_at + self._every_s - time.monotonic() if self._steps else None
            if due_s is not None and due_s <= 0:
                await self._tell_steps()
                continue
            try:
                async with asyncio.timeout(due_s):
                    return await self._reports.get()
            except TimeoutError:
                continue

    async def _take(self, report: Progress) -> None:
        self._meter.saw(report)
        match report:
            case Started():
                self._total_steps = report.total_steps
                await self._state_started(report)
            case Step():
                self._note(report)
                if report.step > self._last_step:
                    self._steps.append(report)
            case Evaluated():
                self._note(report)
                await self._tell_evaluation(report)
            case CheckpointWritten() if report.interim and report.step < self._written_step:
                # A later one stands already: uploads are slower than saves, and must not fall behind ever more.
                await asyncio.to_thread(shutil.rmtree, report.directory, ignore_errors=True)
            case CheckpointWritten():
                await self._save_checkpoint(report)
            case _:
                self.last = report

    async def _state_started(self, report: Started) -> None:
        fact = run_started(report)
        # What becomes of the attempt's artifact belongs to the trace of the attempt.
        trace = {"run_trace": current_traceparent()}
        self._check(
            await self._insist(lambda: self._store.state(self._run.claim, fact, op_id="RunStarted", also=trace))
        )

    async def _tell_steps(self) -> None:
        """State what has gathered; a full outbox halves it, and what is still there waits for the next time."""
        if not self._steps:
            return
        batch = self._steps[:_MAX_BATCH]
        facts = [step_completed(step, self._total_steps) for step in batch]
        told = await self._insist(lambda: self._store.state(self._run.claim, facts))
        await failpoint("trainer.after_steps")
        self._told_at = time.monotonic()
        if told.outcome is Outcome.FULL:
            if len(self._steps) == 1:
                self._steps.clear()
            self._steps = thin(self._steps)
            return
        self._check(told)
        self._last_step = batch[-1].step
        self._steps = self._steps[len(batch) :]

    async def _tell_all_steps(self) -> None:
        while self._steps:
            await self._tell_steps()

    async def _tell_evaluation(self, report: Evaluated) -> None:
        await self._tell_all_steps()
        if report.full:
            fact = validation_completed(report, self._total_steps)
            self._check(await self._insist(lambda: self._store.state(self._run.claim, fact)))

    async def _save_checkpoint(self, report: CheckpointWritten) -> None:
        """Upload, then name it on the job: only a whole checkpoint is ever named."""
        began_s = time.monotonic()
        await self._tell_all_steps()
        await self._upload_metrics()
        key = f"{self._run.prefix}step-{report.step}/"
        with span_of("trainer.save_checkpoint", attributes={"step": report.step}):
            blob = await self._upload(report.directory, key, report.manifest_sha256)
        await failpoint("trainer.before_checkpoint_saved")
        fact = CheckpointSaved(
            step=report.step, attempt=self._run.claim.attempt, blob=blob, metrics=dict(report.metrics)
        )
        self._check(await self._insist(lambda: self._store.state(self._run.claim, fact)))
        await failpoint("trainer.after_checkpoint_saved")
        self.saved_step = report.step
        saw_checkpoint(time.monotonic() - began_s, blob.bytes)
        self._uploaded.append(report.directory)
        for old in self._uploaded[:-KEEP_CHECKPOINTS]:
            await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)
        self._uploaded = self._uploaded[-KEEP_CHECKPOINTS:]
        if report.interim:
            self._interim_keys.append(key)
        # An epoch may last for days: of those that the clock made, only the last ones are kept.
        if len(self._interim_keys) > KEEP_CHECKPOINTS:
            oldest = self._interim_keys.pop(0)
            await self._insist(lambda: self._store.let_go(oldest, self._run.claim))

    async def _upload(self, directory: Path, key: str, digest: str) -> Blob:
        return await upload_directory(self._store, self._objects, self._run, directory, key, digest, self._insist)

    async def _upload_metrics(self) -> str | None:
        if not self._metrics_path.exists():
            return None
        return await self._insist(
            lambda: upload_run_file(self._store, self._objects, self._run, self._metrics_path, METRICS_FILE)
        )

    def _note(self, report: Step | Evaluated) -> None:
        with self._metrics_path.open("a") as stream:
            stream.write(json.dumps(series_row(report)) + "\n")

    @staticmethod
    def _check(told: Advanced) -> None:
        if not told.done:
            raise AttemptOverError(told.outcome)
