"""trl's SFTTrainer, held to our plan: which rows meet when, what is counted, when it reports, saves and stops.

Given the same plan and seed, a run that was stopped and resumed makes the same steps as one that was not: evaluation
draws no random numbers, the order is data, and a checkpoint holds everything else.
"""

import json
import math
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import SFTTrainer

from luthier_common.contract.reasons import FailureReason
from luthier_trainer.checkpoints import MODEL_FILES, seal, staged
from luthier_trainer.protocol import CheckpointWritten, Evaluated, RunSpec, Step
from luthier_trainer.training.batches import Tensors, TokenSums, TrainedTokens, collate, num_read
from luthier_trainer.training.data import TokenRows
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.plan import MicroBatch, Plan
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.stopping import StepDroppedError, StopFlag
from luthier_trainer.training.watchdog import Watchdog

# A backward costs about twice its forward.
_FORWARD_AND_BACKWARD = 3


class RunTrainer(SFTTrainer):
    """One run. `metrics` are those of the last step, as its checkpoint carries them."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        plan: Plan,
        rows: TokenRows,
        validation: tuple[TokenRows, list[MicroBatch]] | None,
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
        self.metrics: dict[str, float] = {}
        self.saved: Path | None = None
        self._sums: TokenSums | None = None
        self._num_read = 0
        self._reported_step = -1
        self._step_began_at = time.monotonic()
        trained = [sum(rows.num_trained[row] for micro in step for row in micro.rows) for step in plan.steps]
        self.trained_tokens_at = [0]
        for count in trained:
            self.trained_tokens_at.append(self.trained_tokens_at[-1] + count)

    def get_train_dataloader(self) -> Any:
        """The plan's steps in order; resuming skips those already made."""
        numbers: Any = range(self.plan.total_steps)
        steps: Any = DataLoader(numbers, batch_size=1, shuffle=False, collate_fn=self._collate_step)
        self._step_began_at = time.monotonic()
        return self.accelerator.prepare(steps)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """All forwards of one optimiser step; their gradients add up to that of the mean over its trained tokens."""
        micro_batches: list[Tensors] = inputs["micro_batches"]
        self._sums, self._num_read = None, num_read(micro_batches)
        make_forward: Any = super().training_step
        losses: list[torch.Tensor] = []
        random_state = read_random_state(self.args.device)
        for micro in micro_batches:
            if self.stop.is_set:
                write_random_state(self.args.device, random_state)
                self._leave_step(model)
            losses.append(make_forward(model, micro, num_items_in_batch))
        return torch.stack(losses).sum()

    def _leave_step(self, model: Any) -> NoReturn:
        """Save what this process has made before this step, unless it is saved; nothing of the step is kept."""
        step = self.state.global_step
        if step == self._reported_step and self.saved != self._checkpoint_of(step):
            self._save_checkpoint(model, None)
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
        model, sums = self.network, None
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for micro in micro_batches:
                if self.stop.is_set:
                    break
                tensors = collate(micro, rows, self._pad_id)
                self.watchdog.beat(tensors["input_ids"].numel())
                found = self.head.sums(model, self._prepare_inputs(tensors))
                sums = found if sums is None else sums + found
        self.watchdog.beat()
        model.train()
        return None if self.stop.is_set or sums is None else sums.means()

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
        self.out.put(Evaluated(step=step, valid_loss=loss, valid_mean_token_accuracy=accuracy, full=is_full))

    def _collate_step(self, numbers: list[int]) -> dict[str, list[Tensors]]:
        step = self.plan.steps[numbers[0]]
        return {"micro_batches": [collate(micro, self.rows, self._pad_id) for micro in step]}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, list[Tensors]]], device: torch.device) -> Any:
        count = sum(int((m["labels"] != -100).sum()) for batch in batch_samples for m in batch["micro_batches"])
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
            self._save_checkpoint(model, None)
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
        if step % self.log_every_steps and step != self.plan.total_steps and not self.stop.is_set:
            return
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
                tokens_per_s=self._num_read / max(step_time_s, 1e-9),
            )
        )

    def _checkpoint_of(self, step: int) -> Path:
        return self.spec.output_dir / f"step-{step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        target = self._checkpoint_of(step)
        self.watchdog.beat_before_files()
        with staged(target) as staging:
            save_weights(self.accelerator.unwrap_model(model), staging, self.base_name)
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            self.state.save_to_json(str(staging / "trainer_state.json"))
            digest = seal(staging, "checkpoint", self.spec.job_id, self.spec.attempt, step, self.metrics)
        self.watchdog.beat()
        self.saved = target
        self.out.put(
            CheckpointWritten(
                step=step,
                epoch=self.plan.epoch_at(step),
                directory=target,
                manifest_sha256=digest,
                metrics=self.metrics,
                trained_tokens=self.trained_tokens_at[step],
            )
        )


def require_finite(number: float, what: str) -> None:
    if not math.isfinite(number):
        raise TrainingError(FailureReason.LOSS_DIVERGED, f"{what} is not a finite number")


def read_random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the numbers that a forward draws: dropout's, by torch alone."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def write_random_state(device: torch.device, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Go back to a state that was read."""
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)


def save_weights(model: Any, directory: Path, base_name: str) -> None:
    """Adapter (or all weights) as safetensors, with a config that names the base and no path of this machine."""
    if not hasattr(model, "peft_config"):
        model.save_pretrained(directory)
        for path in list(directory.iterdir()):
            if path.name not in MODEL_FILES:
                path.unlink()
        return
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_bytes())
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
