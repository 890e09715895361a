"""How much of a step lies in memory at once: less, from the first forward on that did not fit."""

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from luthier_common.contract.reasons import FailureReason
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.plan import ForwardLimits, MicroBatch, num_held, split_again

FIT_FILE = "fit.json"
_SAID_WITHOUT_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Fit(BaseModel):
    """What a run has learnt of its device's memory; its checkpoints keep it."""

    max_tokens: int
    recomputes: bool = False


class Fitting:
    """Splits rows into forwards that fit: smaller after one that did not, at last with activation checkpointing."""

    def __init__(self, network: Any, limits: ForwardLimits) -> None:
        self._network = network
        self._limits = limits
        self._recomputes = False
        self._has_learnt = False

    def split(self, micro_batches: Iterable[MicroBatch], lengths: Sequence[int]) -> list[MicroBatch]:
        """The same rows in forwards of at most what is known to fit; those that do stay as they are."""
        return [part for micro in micro_batches for part in split_again(micro, lengths, self._limits)]

    def attempt(self, micro: MicroBatch, lengths: Sequence[int], work: Callable[[], T]) -> T | None:
        """What work on these rows gives; None where it did not fit: split anew. TrainingError when that is no use."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(micro, num_held(micro, lengths))
        # Only now: the error's traceback held the tensors of the forward.
        gc.collect()
        torch.cuda.empty_cache()
        return None

    def save(self, directory: Path) -> None:
        """Into a checkpoint, if there is anything to keep."""
        if self._has_learnt:
            fit = Fit(max_tokens=self._limits.max_tokens, recomputes=self._recomputes)
            (directory / FIT_FILE).write_text(fit.model_dump_json())

    def load(self, directory: Path) -> None:
        """From a checkpoint: what did not fit then is not tried again."""
        path = directory / FIT_FILE
        if not path.exists():
            return
        fit = Fit.model_validate_json(path.read_bytes())
        self._limit(min(fit.max_tokens, self._limits.max_tokens))
        if fit.recomputes:
            self._recompute()

    def _shrink(self, micro: MicroBatch, num_tokens: int) -> None:
        _log.warning("out of memory in a forward of %d tokens (%d rows)", num_tokens, len(micro.rows))
        if len(micro.rows) > 1:
            self._limit(num_tokens // 2)
            _log.warning("from now on a forward holds at most %d tokens", self._limits.max_tokens)
        elif not self._recomputes and self._network.supports_gradient_checkpointing:
            self._recompute()
            _log.warning("from now on activations are computed again in the backward")
        else:
            reason = FailureReason.OUT_OF_MEMORY
            raise TrainingError(reason, f"{reason.sentence} A single row of {num_tokens} tokens did not fit.")

    def _limit(self, max_tokens: int) -> None:
        self._limits = replace(self._limits, max_tokens=max_tokens)
        self._has_learnt = True

    def _recompute(self) -> None:
        self._network.activation_checkpointing_enable()
        self._recomputes = self._has_learnt = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device, or of the machine, is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_WITHOUT_MEMORY)
