"""Everything a run needs, on this node's disk and checked, as the spec of its child."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier_common.contract.events import CheckpointRejected, CheckpointSaved
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.objects import ObjectStore, in_thread
from luthier_trainer.base_cache import BaseCache
from luthier_trainer.domain import Assignment, AttemptOverError, child_hyperparameters
from luthier_trainer.protocol import RUN_FILE, RunSpec
from luthier_trainer.settings import TrainerSettings
from luthier_trainer.store import Store
from luthier_trainer.transfers import (
    METRICS_FILE,
    PreparationError,
    fetch_checkpoint,
    fetch_dataset,
    fetch_earlier_metrics,
)

log = logging.getLogger(__name__)


class Preparation:
    """Fetches what one run needs. Raises PreparationError, AttemptOverError, or what the servers raise."""

    def __init__(self, run: Assignment, store: Store, objects: ObjectStore, settings: TrainerSettings) -> None:
        self._run = run
        self._store = store
        self._objects = objects
        self._settings = settings
        self._bases = BaseCache(objects, settings.home / "cache" / "bases")

    async def prepare(self, directory: Path, has_gpus: bool) -> RunSpec:
        """Fill the run's directory and write its `run.json`. Repeatable."""
        with _disk_of_node():
            while True:
                try:
                    return await self._prepare(directory, has_gpus)
                except OSError as error:
                    if not _is_disk_full(error) or not await in_thread(self._bases.drop_one, self._run.base_digest):
                        raise

    async def _prepare(self, directory: Path, has_gpus: bool) -> RunSpec:
        run, settings = self._run, self._settings
        base = await self._store.read_base(run.base_digest)
        if base is None:
            raise PreparationError(FailureReason.BASE_MISSING)
        base_dir = await self._bases.lend(base, directory / "base")
        train_file = await fetch_dataset(
            self._store, self._objects, run.spec.training_file, run.training_sha256, directory / "train.jsonl"
        )
        validation_file = None
        if run.spec.validation_file is not None:
            validation_file = await fetch_dataset(
                self._store, self._objects, run.spec.validation_file, run.validation_sha256, directory / "valid.jsonl"
            )
        spec = RunSpec(
            job_id=run.claim.job_id,
            attempt=run.claim.attempt,
            base_dir=base_dir,
            train_file=train_file,
            validation_file=validation_file,
            output_dir=directory / "out",
            resume_from=await self._restore(directory),
            seed=run.resolved.seed,
            hyperparameters=child_hyperparameters(run.resolved),
            on_overlength=run.resolved.on_overlength,
            checkpoint_every_steps=settings.checkpoint_every_steps,
            checkpoint_every_s=settings.checkpoint_every_s,
            max_tokens_per_forward=settings.max_tokens_per_forward,
            num_threads=None if has_gpus else settings.threads_of(len(run.claim.slots)),
            device="cuda" if has_gpus else "cpu",
            stall_after_s=settings.stall_after_s,
        )
        (directory / RUN_FILE).write_text(spec.model_dump_json(indent=2))
        return spec

    async def _restore(self, directory: Path) -> Path | None:
        """The newest checkpoint that is whole, or None: then the run starts at its first step.

        Only those that the job was told of count: what a lost attempt uploaded and could no longer name is not its.
        """
        wanted = self._run.checkpoint
        if wanted is None:
            return None
        problems = await self._try(wanted, directory)
        if not problems:
            return _directory_of(wanted, directory)
        for older in await self._store.read_saved_checkpoints(self._run.claim.job_id, below_step=wanted.step):
            if not await self._try(older, directory):
                await self._reject(wanted, problems, older)
                return _directory_of(older, directory)
        await self._reject(wanted, problems, None)
        return None

    async def _try(self, saved: CheckpointSaved, directory: Path) -> list[str]:
        problems = await fetch_checkpoint(self._objects, self._run, saved, _directory_of(saved, directory))
        await failpoint("trainer.after_restore")
        if problems:
            log.error("a checkpoint is refused", extra={"step": saved.step, "problems": problems})
        else:
            await fetch_earlier_metrics(self._objects, self._run, saved, directory / METRICS_FILE)
        return problems

    async def _reject(self, wanted: CheckpointSaved, problems: list[str], older: CheckpointSaved | None) -> None:
        """Say so, and make the job's document name the one that is used: the broken one is not tried again."""
        fact = CheckpointRejected(
            step=wanted.step,
            problem="; ".join(problems)[:500],
            falls_back_to_step=None if older is None else older.step,
        )
        await failpoint("trainer.before_reject")
        also = {"checkpoint": None if older is None else older.model_dump(mode="json")}
        told = await self._store.state(self._run.claim, fact, op_id=f"CheckpointRejected/{wanted.step}", also=also)
        if not told.done:
            raise AttemptOverError(told.outcome)


@contextmanager
def _disk_of_node() -> Iterator[None]:
    """A full disk is no server to wait for: slots would be held all the while, and another node may have room."""
    try:
        yield
    except OSError as error:
        if not _is_disk_full(error):
            raise
        raise PreparationError(FailureReason.STORAGE, "The node that was to run the job has no room left.") from error


def _is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _directory_of(saved: CheckpointSaved, directory: Path) -> Path:
    return directory / f"checkpoint-{saved.attempt}-{saved.step}"
