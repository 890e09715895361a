"""The edge of the child: whatever happens inside becomes one last report and an exit code."""

import logging
import os
from pathlib import Path

from luthier_common.contract.reasons import FailureReason
from luthier_trainer.protocol import PROGRESS_FD_VARIABLE, ExitCode, Failed, Finished, Paused, read_run
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.fitting import is_out_of_memory
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.saving import is_of_storage
from luthier_trainer.training.sft import train
from luthier_trainer.training.stopping import StopFlag
from luthier_trainer.training.watchdog import Watchdog

LOAD_S = 1800.0
_STDOUT = 1
_log = logging.getLogger(__name__)


def run(run_dir: Path, stop: StopFlag) -> ExitCode:
    """Train what `run.json` says and tell how it ended."""
    out = ProgressWriter(int(os.environ.get(PROGRESS_FD_VARIABLE, _STDOUT)))
    report: Finished | Paused | Failed
    try:
        report = _train(run_dir, out, stop)
    # The edge of the process: nothing may end it without a reason.
    except Exception as error:
        _log.exception("the run failed")
        report = _explain(error)
    out.put(report)
    out.close()
    match report:
        case Finished():
            return ExitCode.FINISHED
        case Paused():
            return ExitCode.PAUSED
        case _:
            return ExitCode.FAILED if report.retryable else ExitCode.FAILED_BY_DATA


def _train(run_dir: Path, out: ProgressWriter, stop: StopFlag) -> Finished | Paused:
    spec = read_run(run_dir)

    def tell_stall() -> None:
        reason = FailureReason.RUN_STALLED
        out.put(Failed(reason=reason, message=reason.sentence, retryable=True))
        out.close(2.0)

    watchdog = Watchdog(spec.stall_after_s, LOAD_S, tell_stall)
    try:
        return train(spec, out, stop, watchdog)
    finally:
        watchdog.close()


def _explain(error: Exception) -> Failed:
    match error:
        case TrainingError():
            return Failed(reason=error.reason, message=error.message, retryable=error.is_retryable)
        case _ if is_out_of_memory(error):
            reason = FailureReason.OUT_OF_MEMORY
        case _ if is_of_storage(error):
            reason = FailureReason.STORAGE
        case _:
            return Failed(reason=FailureReason.INTERNAL, message=type(error).__name__, retryable=True)
    return Failed(reason=reason, message=reason.sentence, retryable=reason.owner != "user")
