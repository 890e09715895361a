"""A supervised fine-tune, top to bottom: base, rows, plan, model, steps."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
from trl.trainer.sft_config import SFTConfig

from luthier_common.contract.reasons import FailureReason
from luthier_text import TOKENIZER_FILE, TextBundle, TextError
from luthier_trainer.checkpoints import read_manifest, verify
from luthier_trainer.protocol import MAX_STEP_REPORTS, Finished, Paused, RunSpec, Started
from luthier_trainer.training.data import TokenRows, read_rows
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.loop import RunTrainer
from luthier_trainer.training.plan import ForwardLimits, MicroBatch, Plan, plan_run, split_padded
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.publishing import describe, publish
from luthier_trainer.training.stopping import StepDroppedError, StopFlag
from luthier_trainer.training.watchdog import Watchdog

CPU_LIMITS = ForwardLimits(max_tokens=1024, overhead_tokens=32)
CUDA_LIMITS = ForwardLimits(max_tokens=16384, overhead_tokens=256)


def train(spec: RunSpec, out: ProgressWriter, stop: StopFlag, watchdog: Watchdog) -> Finished | Paused:
    """Make the run's steps, or those that are left of them; raises `TrainingError`."""
    device, dtype = choose_device(spec)
    start_step = check_checkpoint(spec)
    base_name = read_base_name(spec.base_dir)
    text, limits, wanted = load_text(spec.base_dir), choose_limits(spec, device), spec.hyperparameters
    rows, plan = read_training(spec, text, limits, watchdog)
    validation = read_validation(spec, text, limits, watchdog)
    if stop.is_set:
        return Paused(step=start_step, directory=spec.resume_from)

    watchdog.beat_before_files()
    set_seed(library_seed(spec))
    # Trained weights are float32 in any case (peft sees to an adapter's): bfloat16 would round small updates away.
    model = load_model(spec.base_dir, dtype if wanted.lora else torch.float32)
    tokenizer = load_tokenizer(spec.base_dir, text)
    trainer = RunTrainer(
        spec=spec,
        plan=plan,
        rows=rows,
        validation=validation,
        limits=limits,
        log_every_steps=spec.log_every_steps or -(-plan.total_steps // MAX_STEP_REPORTS),
        base_name=base_name,
        pad_id=tokenizer.pad_token_id,
        out=out,
        stop=stop,
        watchdog=watchdog,
        model=model,
        args=trl_config(spec, plan, device, dtype),
        # trl wants one and reads its first row's columns; the steps' rows come from the plan.
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
        processing_class=tokenizer,
        peft_config=lora_config(spec) if wanted.lora else None,
    )
    resolved = describe(spec, trainer, text, device, dtype)
    out.put(started(spec, trainer, start_step, resolved))
    return make_steps(spec, trainer, start_step, resolved)


def make_steps(spec: RunSpec, trainer: RunTrainer, start_step: int, resolved: dict[str, Any]) -> Finished | Paused:
    """From the base or the checkpoint to the end of the plan, and what is published; or as far as a stop lets it."""
    total = trainer.plan.total_steps
    if spec.resume_from is not None:
        trainer.fitting.load(spec.resume_from)
        finish_evaluation(trainer, spec.resume_from, start_step)
    else:
        # What the base itself reaches: without it nobody can say that training helped.
        trainer.evaluate_at(0)
    if start_step < total:
        trainer.watchdog.beat_before_files()
        with suppress(StepDroppedError):
            trainer.train(resume_from_checkpoint=None if spec.resume_from is None else str(spec.resume_from))
        start_step = trainer.state.global_step
    last = trainer.saved or spec.resume_from
    if start_step < total or last is None or trainer.owes_validation(start_step):
        return Paused(step=start_step, directory=last)
    trainer.watchdog.beat_before_files()
    return publish(spec, trainer, last, resolved)


def started(spec: RunSpec, trainer: RunTrainer, start_step: int, resolved: dict[str, Any]) -> Started:
    """What is told before the first step."""
    return Started(
        total_steps=trainer.plan.total_steps,
        steps_per_epoch=trainer.plan.steps_per_epoch,
        start_step=start_step,
        num_epochs=spec.hyperparameters.n_epochs,
        num_examples=len(trainer.rows),
        num_skipped_rows=trainer.rows.num_skipped,
        num_train_tokens=trainer.trained_tokens_at[-1],
        log_every_steps=trainer.log_every_steps,
        resolved=resolved,
    )


def choose_device(spec: RunSpec) -> tuple[str, torch.dtype]:
    """Where and in which precision: on a CPU float32, which is exact and on most CPUs not slower."""
    if spec.device == "cuda":
        check_cuda()
    device = spec.device if spec.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    is_bfloat16 = spec.dtype == "bfloat16" or (spec.dtype == "auto" and device == "cuda")
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    return device, torch.bfloat16 if is_bfloat16 else torch.float32


def check_cuda() -> None:
    """The service asks only the driver whether a GPU is there; whether this PyTorch can use it is known here."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise TrainingError(FailureReason.INTERNAL, "The node has a GPU, and its PyTorch is built without CUDA.")
    raise TrainingError(
        FailureReason.INTERNAL,
        f"PyTorch is built for CUDA {torch.version.cuda} and can use no GPU of the node: its driver may be too old.",
    )


def library_seed(spec: RunSpec) -> int:
    """A job's seed may be any integer; numpy takes 32 bits without a sign."""
    return spec.seed % 2**32


def choose_limits(spec: RunSpec, device: str) -> ForwardLimits:
    """How much one forward may hold."""
    limits = CUDA_LIMITS if device == "cuda" else CPU_LIMITS
    return ForwardLimits(spec.max_tokens_per_forward or limits.max_tokens, limits.overhead_tokens)


def check_checkpoint(spec: RunSpec) -> int:
    """The step that a run goes on from; a checkpoint that is not whole is refused."""
    if spec.resume_from is None:
        return 0
    if problems := verify(spec.resume_from):
        raise TrainingError(FailureReason.CHECKPOINT_CORRUPT, "; ".join(problems))
    manifest = read_manifest(spec.resume_from)
    if manifest.job_id != spec.job_id:
        raise TrainingError(FailureReason.CHECKPOINT_CORRUPT, f"the checkpoint is that of {manifest.job_id}")
    return manifest.step


def read_base_name(base_dir: Path) -> str:
    """Name and digest of the base, as the adapter's config carries them."""
    try:
        bundle = json.loads((base_dir / "bundle.json").read_bytes())
        return f"{bundle['name']}@{bundle['digest']}"
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(FailureReason.BASE_MISSING, "the base bundle has no readable bundle.json") from error


def load_text(base_dir: Path) -> TextBundle:
    try:
        return TextBundle.load(base_dir)
    except TextError as error:
        raise TrainingError(FailureReason.BASE_MISSING, error.message) from error


def read_training(spec: RunSpec, text: TextBundle, limits: ForwardLimits, watchdog: Watchdog) -> tuple[TokenRows, Plan]:
    """Training rows and the steps that are made of them. A beat a row: how long all of them take says nothing."""
    wanted, on_row = spec.hyperparameters, watchdog.beat_before_files
    rows = read_rows(spec.train_file, text, wanted.context_length, spec.on_overlength, on_row)
    plan = plan_run(
        rows.lengths,
        batch_size=wanted.batch_size,
        n_epochs=wanted.n_epochs,
        seed=spec.seed,
        limits=limits,
        pack_length=wanted.context_length if wanted.packing else None,
        max_steps=spec.max_steps,
    )
    watchdog.beat_before_files()
    return rows, plan


def read_validation(
    spec: RunSpec, text: TextBundle, limits: ForwardLimits, watchdog: Watchdog
) -> tuple[TokenRows, list[MicroBatch]] | None:
    """Validation rows and the forwards that read each of them once."""
    if spec.validation_file is None:
        return None
    max_length, on_row = spec.hyperparameters.context_length, watchdog.beat_before_files
    rows = read_rows(spec.validation_file, text, max_length, spec.on_overlength, on_row)
    order = sorted(range(len(rows)), key=rows.lengths.__getitem__)
    chunks = [order[start : start + 64] for start in range(0, len(order), 64)]
    return rows, [micro for chunk in chunks for micro in split_padded(chunk, rows.lengths, limits)]


def load_model(base_dir: Path, dtype: torch.dtype) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            base_dir,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TrainingError(FailureReason.BASE_MISSING, "the base model cannot be loaded") from error


def load_tokenizer(base_dir: Path, text: TextBundle) -> Any:
    """For trl, which wants one: rows come as ids, it only lends the padding id."""
    config = text.config
    pad_token = config.pad_token or config.eos_token or config.generation_eos[0]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(base_dir / TOKENIZER_FILE), pad_token=pad_token, eos_token=config.eos_token
    )


def lora_config(spec: RunSpec) -> LoraConfig:
    wanted = spec.hyperparameters
    return LoraConfig(
        r=wanted.lora_r,
        lora_alpha=wanted.lora_alpha,
        lora_dropout=wanted.lora_dropout,
        target_modules=wanted.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )


def trl_config(spec: RunSpec, plan: Plan, device: str, dtype: torch.dtype) -> SFTConfig:
    """One trl "epoch" is the whole plan; reports, evaluations and checkpoints are ours (`loop.py`)."""
    wanted = spec.hyperparameters
    return SFTConfig(
        output_dir=str(spec.output_dir),
        max_steps=plan.total_steps,
        per_device_train_batch_size=wanted.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=wanted.learning_rate,
        lr_scheduler_type=wanted.lr_scheduler if wanted.lr_scheduler != "constant" else "constant_with_warmup",
        warmup_steps=wanted.warmup_of(plan.total_steps),
        weight_decay=wanted.weight_decay,
        max_grad_norm=wanted.max_grad_norm,
        optim="adamw_torch_fused",
        seed=library_seed(spec),
        bf16=device == "cuda" and dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        # The old name, on by default, would win over the new one.
        gradient_checkpointing=None,  # type: ignore[arg-type]
        activation_checkpointing=False,
        max_length=None,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=device == "cuda",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def finish_evaluation(trainer: RunTrainer, checkpoint: Path, step: int) -> None:
    """Make up for the evaluation of the checkpoint's own step where a stop had cut it off."""
    trainer.metrics = dict(read_manifest(checkpoint).metrics)
    if trainer.owes_validation(step):
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.evaluate_at(step)
