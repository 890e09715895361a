"""trl's SFTTrainer, held to our plan: which rows meet when, what is counted, when it reports, saves and stops.

Given the same plan and seed, a run that was stopped and resumed makes the same steps as one that was not: evaluation
draws no random numbers, the order is data, and a checkpoint holds everything else.
"""

import math
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import SFTTrainer

from luthier_common.contract.reasons import FailureReason
from luthier_trainer.checkpoints import seal, staged
from luthier_trainer.protocol import CheckpointWritten, Evaluated, RunSpec, Step
from luthier_trainer.training.batches import Tensors, TokenSums, TrainedTokens, collate
from luthier_trainer.training.data import TokenRows
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.fitting import Fitting
from luthier_trainer.training.plan import ForwardLimits, MicroBatch, Plan
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.saving import SaveClock, save_weights
from luthier_trainer.training.stopping import StepDroppedError, StopFlag
from luthier_trainer.training.watchdog import Watchdog

# A backward costs about twice its forward.
_FORWARD_AND_BACKWARD = 3
RandomState = tuple[torch.Tensor, torch.Tensor | None]


class RunTrainer(SFTTrainer):
    """One run. `metrics` are those of the last step, as its checkpoint carries them."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        plan: Plan,
        rows: TokenRows,
        validation: tuple[TokenRows, list[MicroBatch]] | None,
        limits: ForwardLimits,
        log_every_steps: int,
        base_name: str,
        pad_id: int,
        out: ProgressWriter,
        stop: StopFlag,
        watchdog: Watchdog,
        **trl_arguments: Any,
    ) -> None:
        super().__init__(**trl_arguments)
        self.spec, self.plan, self.rows, self.validation = spec, plan, rows, validation
        self.log_every_steps, self.base_name = log_every_steps, base_name
        self.out, self.stop, self.watchdog = out, stop, watchdog
        self.network: Any = self.model
        self._pad_id = pad_id
        self.head = TrainedTokens(self.network)
        self.fitting = Fitting(self.network, limits)
        self.metrics: dict[str, float] = {}
        self.saved: Path | None = None
        self._sums: TokenSums | None = None
        self._save_clock = SaveClock(spec.checkpoint_every_s)
        self._reported_step = -1
        self._step_began_at = time.monotonic()
        trained = [sum(rows.num_trained[row] for micro in step for row in micro.rows) for step in plan.steps]
        self.trained_tokens_at = [0]
        for count in trained:
            self.trained_tokens_at.append(self.trained_tokens_at[-1] + count)

    def get_train_dataloader(self) -> Any:
        """The plan's steps in order; resuming skips those already made."""
        numbers: Any = range(self.plan.total_steps)
        # Numbers alone: a step's rows become tensors when it is made, in forwards as small as it then takes.
        steps: Any = DataLoader(numbers, batch_size=1, shuffle=False, collate_fn=lambda batch: {"index": batch[0]})
        self._step_began_at = now_s = time.monotonic()
        self._save_clock.saved(now_s, now_s)
        return self.accelerator.prepare(steps)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """All forwards of one optimiser step, made anew in smaller ones where one did not fit.

        Their gradients add up to that of the mean over the step's trained tokens.
        """
        planned, random_state = self.plan.steps[inputs["index"]], read_random_state(self.args.device)
        while True:
            micro_batches = self.fitting.split(planned, self.rows.lengths)
            loss = self._make_forwards(model, micro_batches, num_items_in_batch, random_state)
            if loss is not None:
                return loss
            model.zero_grad()
            write_random_state(self.args.device, random_state)

    def _make_forwards(
        self, model: Any, micro_batches: list[MicroBatch], num_items_in_batch: Any, random_state: RandomState
    ) -> torch.Tensor | None:
        """The step's loss; None where one of the forwards did not fit."""
        make_forward: Any = super().training_step
        # All at once: a copy to the GPU waits for what it still computes.
        tensors: Any = self._prepare_input([collate(micro, self.rows, self._pad_id) for micro in micro_batches])
        losses: list[torch.Tensor] = []
        self._sums = None
        for micro, on_device in zip(micro_batches, tensors, strict=True):
            if self.stop.is_set:
                write_random_state(self.args.device, random_state)
                self._leave_step(model)
            forward = partial(make_forward, model, on_device, num_items_in_batch)
            loss = self.fitting.attempt(micro, self.rows.lengths, forward)
            if loss is None:
                return None
            losses.append(loss)
        return torch.stack(losses).sum()

    def _leave_step(self, model: Any) -> NoReturn:
        """Save what this process has made before this step, unless it is saved; nothing of the step is kept."""
        step = self.state.global_step
        if step == self._reported_step and self.saved != self._checkpoint_of(step):
            self._write_checkpoint(model)
        raise StepDroppedError

    def compute_loss(
        self, model: Any, inputs: Tensors, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This forward's share of the step's mean loss."""
        self.watchdog.beat(_FORWARD_AND_BACKWARD * inputs["input_ids"].numel())
        sums = self.head.sums(model, inputs)
        done = sums.detach()
        self._sums = done if self._sums is None else self._sums + done
        loss: torch.Tensor = sums.loss / num_items_in_batch
        return loss

    def evaluate_rows(self, micro_batches: list[MicroBatch], rows: TokenRows) -> tuple[float, float] | None:
        """Loss and accuracy over these rows' trained tokens; None when asked to stop meanwhile."""
        waiting, sums = deque(micro_batches), None
        self.network.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            while waiting and not self.stop.is_set:
                micro, *rest = self.fitting.split([waiting.popleft()], rows.lengths)
                waiting.extendleft(reversed(rest))
                found = self.fitting.attempt(micro, rows.lengths, partial(self._sums_of, micro, rows))
                if found is None:
                    waiting.appendleft(micro)
                else:
                    sums = found if sums is None else sums + found
        self.watchdog.beat()
        self.network.train()
        return None if self.stop.is_set or sums is None else sums.means()

    def _sums_of(self, micro: MicroBatch, rows: TokenRows) -> TokenSums:
        tensors = collate(micro, rows, self._pad_id)
        self.watchdog.beat(tensors["input_ids"].numel())
        return self.head.sums(self.network, self._prepare_inputs(tensors))

    def owes_validation(self, step: int) -> bool:
        """Whether all validation rows belong to this step and were not read: a stop came before."""
        is_due = self.validation is not None and self.plan.is_epoch_end(step)
        return is_due and "full_valid_loss" not in self.metrics

    def evaluate_at(self, step: int) -> None:
        """Validation where the plan wants it: all rows before the first step and after each epoch, some in between."""
        every = self.spec.eval_every_steps
        is_full = self.plan.is_epoch_end(step)
        if self.validation is None or not (is_full or (every and step % every == 0)):
            return
        rows, micro_batches = self.validation
        means = self.evaluate_rows(micro_batches if is_full else micro_batches[:: -(-len(micro_batches) // 8)], rows)
        if means is None:
            return
        loss, accuracy = means
        require_finite(loss, f"the validation loss at step {step}")
        self.metrics["valid_loss"], self.metrics["valid_mean_token_accuracy"] = loss, accuracy
        if is_full:
            self.metrics["full_valid_loss"], self.metrics["full_valid_mean_token_accuracy"] = loss, accuracy
        self.out.put(
            Evaluated(
                step=step,
                valid_loss=loss,
                valid_mean_token_accuracy=accuracy,
                full=is_full,
                train_loss=self.metrics.get("train_loss"),
            )
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, int]], device: torch.device) -> Any:
        at = self.trained_tokens_at
        count = sum(at[batch["index"] + 1] - at[batch["index"]] for batch in batch_samples)
        return torch.tensor(max(count, 1), device=device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would cost time in every step and nobody reads it."""
        return 0

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, *_rest: Any, learning_rate: float | None = None, **_: Any
    ) -> None:
        step = self.state.global_step
        if step == self._reported_step:
            return
        self._reported_step = step
        self.watchdog.beat()
        self._report_step(step, grad_norm, learning_rate)
        self.evaluate_at(step)
        every = self.spec.checkpoint_every_steps
        if self.stop.is_set or self.plan.is_epoch_end(step) or (every and step % every == 0):
            self._write_checkpoint(model)
        elif self._save_clock.is_due(time.monotonic()):
            self._write_checkpoint(model, is_interim=True)
        if self.stop.is_set or step >= self.plan.total_steps:
            self.control.should_training_stop = True
        self._step_began_at = time.monotonic()

    def _report_step(self, step: int, grad_norm: Any, learning_rate: float | None) -> None:
        assert self._sums is not None, "a step without a forward"
        step_time_s = time.monotonic() - self._step_began_at
        loss, accuracy = self._sums.means()
        require_finite(loss, f"the loss of step {step}")
        if grad_norm is not None:
            # The loss is that of the weights before the step: what the step made of them is known by its gradient.
            require_finite(float(grad_norm), f"the gradient of step {step}")
        self.metrics = {"train_loss": loss, "train_mean_token_accuracy": accuracy}
        if step % self.log_every_steps and not self.plan.is_epoch_end(step) and not self.stop.is_set:
            return
        num_read = sum(self.rows.lengths[row] for micro in self.plan.steps[step - 1] for row in micro.rows)
        self.out.put(
            Step(
                step=step,
                loss=loss,
                mean_token_accuracy=accuracy,
                learning_rate=learning_rate or 0.0,
                grad_norm=None if grad_norm is None else float(grad_norm),
                trained_tokens=self.trained_tokens_at[step],
                epoch=self.plan.epoch_at(step),
                step_time_s=step_time_s,
                tokens_per_s=num_read / max(step_time_s, 1e-9),
            )
        )

    def _checkpoint_of(self, step: int) -> Path:
        return self.spec.output_dir / f"step-{step}"

    def _write_checkpoint(self, model: Any, *, is_interim: bool = False) -> None:
        step, began_at_s = self.state.global_step, time.monotonic()
        target = self._checkpoint_of(step)
        self.watchdog.beat_before_files()
        with staged(target) as staging:
            save_weights(self.accelerator.unwrap_model(model), staging, self.base_name)
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            self.state.save_to_json(str(staging / "trainer_state.json"))
            self.fitting.save(staging)
            digest = seal(staging, "checkpoint", self.spec.job_id, self.spec.attempt, step, self.metrics)
        self.watchdog.beat()
        self.saved = target
        self._save_clock.saved(began_at_s, time.monotonic())
        self.out.put(
            CheckpointWritten(
                step=step,
                epoch=self.plan.epoch_at(step),
                directory=target,
                manifest_sha256=digest,
                metrics=self.metrics,
                trained_tokens=self.trained_tokens_at[step],
                interim=is_interim,
            )
        )


def require_finite(number: float, what: str) -> None:
    if not math.isfinite(number):
        raise TrainingError(FailureReason.LOSS_DIVERGED, f"{what} is not a finite number")


def read_random_state(device: torch.device) -> RandomState:
    """Of the numbers that a forward draws: dropout's, by torch alone."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def write_random_state(device: torch.device, state: RandomState) -> None:
    """Go back to a state that was read."""
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)
