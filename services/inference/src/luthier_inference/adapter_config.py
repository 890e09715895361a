"""What an `adapter_config.json` may say. Everything that would change how the adapter computes is either understood
here or refused; nothing is skipped in silence. Pure."""

import json
from dataclasses import dataclass
from math import sqrt
from typing import Any

from luthier_inference.domain import BadAdapterError

MAX_RANK = 512

# Keys that say nothing about inference: training, provenance, and peft's own bookkeeping.
_IGNORED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_UNDERSTOOD = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"})


@dataclass(frozen=True)
class AdapterConfig:
    """Rank and scale of a LoRA adapter."""

    rank: int
    scale: float


def parse_adapter_config(data: bytes) -> AdapterConfig:
    """Raises `BadAdapterError` for anything but plain LoRA of one rank."""
    try:
        config = json.loads(data)
    except ValueError as error:
        raise BadAdapterError("adapter_config.json is not JSON") from error
    if not isinstance(config, dict):
        raise BadAdapterError("adapter_config.json is not an object")
    for key, value in config.items():
        _check_key(key, value)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise BadAdapterError(f"adapter_config.json: r must be 1 to {MAX_RANK}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise BadAdapterError("adapter_config.json: lora_alpha must be a number")
    return AdapterConfig(rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank))


def _check_key(key: str, value: Any) -> None:
    if key == "peft_type" and value != "LORA":
        raise BadAdapterError("adapter_config.json: peft_type must be LORA")
    if key == "bias" and value not in ("none", None):
        raise BadAdapterError("adapter_config.json: bias must be none")
    if key in ("rank_pattern", "alpha_pattern") and value:
        raise BadAdapterError(f"adapter_config.json: {key} is not supported")
    if key not in _IGNORED | _UNDERSTOOD and value not in (None, False, [], {}):
        raise BadAdapterError(f"adapter_config.json: {key} is not supported")
