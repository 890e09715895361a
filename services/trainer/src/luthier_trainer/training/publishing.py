"""What a run that has made all its steps publishes."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from luthier_text import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextBundle
from luthier_trainer.checkpoints import ADAPTER_FILES, MODEL_FILES, seal, staged
from luthier_trainer.protocol import Finished, RunSpec
from luthier_trainer.training.loop import RunTrainer

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "safetensors")


def describe(spec: RunSpec, trainer: RunTrainer, text: TextBundle, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the run resolved and runs on: pinned in the artifact. Holds no text of any row."""
    return {
        "hyperparameters": spec.hyperparameters.model_dump(mode="json"),
        "seed": spec.seed,
        "total_steps": trainer.plan.total_steps,
        "warmup_steps": trainer.args.warmup_steps,
        "base": trainer.base_name,
        "text": text.facts,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "num_trainable_parameters": sum(p.numel() for p in trainer.network.parameters() if p.requires_grad),
        "row_warnings": dict(trainer.rows.warnings),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def publish(spec: RunSpec, trainer: RunTrainer, checkpoint: Path, resolved: dict[str, Any]) -> Finished:
    """The finished model: weights of the last checkpoint and what gives the same ids, by allow-list; no state files."""
    weights = ADAPTER_FILES if spec.hyperparameters.lora else MODEL_FILES
    total, final = trainer.plan.total_steps, spec.output_dir / "final"
    with staged(final) as staging:
        for name in weights:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, staging / name)
        for name in (TOKENIZER_FILE, TEMPLATE_FILE, TEXT_FILE):
            shutil.copyfile(spec.base_dir / name, staging / name)
        (staging / "golden.json").write_text(json.dumps(trainer.rows.golden))
        (staging / "training.json").write_text(
            json.dumps(resolved, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        )
        digest = seal(staging, "final", spec.job_id, spec.attempt, total, trainer.metrics)
    return Finished(
        step=total,
        directory=final,
        manifest_sha256=digest,
        trained_tokens=trainer.trained_tokens_at[total],
        train_loss=trainer.metrics.get("train_loss"),
        metrics=trainer.metrics,
    )
