"""A base model in memory: loaded from a bundle, with the one forward pass that prefill and decode share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier_inference.domain import BadBaseError
from luthier_inference.engine.lora import Adapter, Plan, attach

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BaseModel:
    """The network and its plan. Used by one thread only."""

    network: Any
    layers: dict[str, nn.Linear]
    plan: Plan
    device: torch.device
    dtype: torch.dtype
    can_batch: bool

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.network.config)

    def forward(
        self,
        ids: Tensor,
        cache: DynamicCache,
        adapters: Sequence[Adapter | None],
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits after the last id of each row, shape [rows, vocabulary]; the cache grows by the ids."""
        self.plan.arrange(adapters, self.device)
        output = self.network(
            input_ids=ids,
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1, :]
        return logits


def load_base(directory: Path, device: str, dtype: str) -> BaseModel:
    """Read a base bundle; code and pickles in it are never run. Raises `BadBaseError`."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        if "auto_map" in config:
            raise BadBaseError("config.json asks for code of its own")
        network: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=_DTYPES[choose_dtype(device, dtype)],
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadBaseError(f"the base bundle cannot be loaded: {error}") from error
    network = network.to(device).eval().requires_grad_(False)
    plan = Plan()
    layers = attach(network, plan)
    can_batch = all(type(layer) is DynamicLayer for layer in DynamicCache(config=network.config).layers)
    return BaseModel(network, layers, plan, torch.device(device), network.dtype, can_batch)


def choose_dtype(device: str, asked: str) -> str:
    """`auto` is bfloat16 on accelerators and on CPUs that multiply it natively; elsewhere float32 is as fast."""
    if asked != "auto":
        return asked
    if not device.startswith("cpu"):
        return "bfloat16"
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"
