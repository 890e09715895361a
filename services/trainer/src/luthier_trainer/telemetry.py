"""What the trainer measures of its runs: gauges of those that run now, and what they leave behind."""

from luthier_common.kit.telemetry import LiveGauge, meter
from luthier_trainer.protocol import Evaluated, Progress, Started, Step

_step = LiveGauge("luthier.train.step", "{step}", "Last step of a running job")
_total_steps = LiveGauge("luthier.train.total_steps", "{step}", "Steps that a running job will make")
_attempt = LiveGauge("luthier.train.attempt", "{attempt}", "Attempt of a running job")
_loss = LiveGauge("luthier.train.loss", "", "Training loss of a running job, over trained tokens")
_accuracy = LiveGauge("luthier.train.accuracy", "", "Mean token accuracy of a running job")
_valid_loss = LiveGauge("luthier.train.valid_loss", "", "Last validation loss of a running job")
_learning_rate = LiveGauge("luthier.train.learning_rate", "", "Learning rate of a running job")
_token_rate = LiveGauge("luthier.train.token_rate", "", "Tokens that a running job reads per second, padding left out")
_step_time = LiveGauge("luthier.train.step_time", "s", "Time of the last step of a running job")
_GAUGES = (_step, _total_steps, _attempt, _loss, _accuracy, _valid_loss, _learning_rate, _token_rate, _step_time)
_tokens = meter().create_counter("luthier.train.tokens", "{token}", "Trained tokens, those of repeated steps included")
_save_time = meter().create_histogram("luthier.checkpoint.save", "s", "From a written checkpoint to one that is kept")
_saved = meter().create_counter("luthier.checkpoint.saved", "By", "Bytes of checkpoints that were kept")


class RunMeter:
    """Follows one attempt's reports."""

    def __init__(self, job_id: str, attempt: int) -> None:
        self._job_id = job_id
        self._trained_tokens: int | None = None
        _attempt.set(attempt, job_id=job_id)
        _tokens.add(0)
        _saved.add(0)

    def saw(self, report: Progress) -> None:
        """A line of the child. What a run made before this attempt is not counted again."""
        match report:
            case Started():
                _total_steps.set(report.total_steps, job_id=self._job_id)
                self._trained_tokens = 0 if report.start_step == 0 else None
            case Step():
                self._saw_step(report)
            case Evaluated() if report.full:
                _valid_loss.set(report.valid_loss, job_id=self._job_id)
            case _:
                return

    def _saw_step(self, step: Step) -> None:
        for gauge, value in (
            (_step, step.step),
            (_loss, step.loss),
            (_accuracy, step.mean_token_accuracy),
            (_learning_rate, step.learning_rate),
            (_token_rate, step.tokens_per_s),
            (_step_time, step.step_time_s),
        ):
            gauge.set(value, job_id=self._job_id)
        before, self._trained_tokens = self._trained_tokens, step.trained_tokens
        if before is not None:
            _tokens.add(max(0, step.trained_tokens - before))


def saw_checkpoint(seconds: float, num_bytes: int) -> None:
    """A checkpoint is stored and named on its job."""
    _save_time.record(seconds)
    _saved.add(num_bytes)


def forget_run(job_id: str) -> None:
    """The run has ended: what was measured of it is history."""
    for gauge in _GAUGES:
        gauge.drop(job_id=job_id)
