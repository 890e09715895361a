"""A base model in memory: loaded from a bundle, with the one forward pass that prefill and decode share."""

import errno
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from luthier_inference.domain import BadBaseError
from luthier_inference.engine.lora import Adapter, Plan, attach

logger = logging.getLogger(__name__)
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
    """Whether rows of several requests are decoded together."""

    def new_cache(self) -> DynamicCache:
        """Rows that share a cache keep all their ids: a layer with a sliding window masks those it does not see."""
        return DynamicCache() if self.can_batch else DynamicCache(config=self.network.config)

    @torch.inference_mode()
    def cache_bytes_of_id(self) -> int:
        """Bytes that one id of one row takes in the cache."""
        cache = self.new_cache()
        self.forward(torch.zeros((1, 1), dtype=torch.long, device=self.device), cache, [None])
        layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
        return sum(each.nbytes for layer in layers for each in (layer.keys, layer.values) if each is not None)

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
    """Read a base bundle; code and pickles in it are never run.

    Raises `BadBaseError`, or `OSError` when the disk does not give what is there.
    """
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
        # What transformers raises itself has no number; a missing file is missing for everybody.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        raise BadBaseError(f"the base bundle cannot be loaded: {error}") from error
    network = network.to(device).eval().requires_grad_(False)
    plan = Plan()
    layers = attach(network, plan)
    can_batch = _can_batch(network.config)
    if not can_batch:
        logger.warning("this kind of model answers one request at a time", extra={"model_type": config["model_type"]})
    return BaseModel(network, layers, plan, torch.device(device), network.dtype, can_batch)


def _can_batch(config: Any) -> bool:
    """Full attention and sliding windows, with positions that mean the same whoever else is in the batch."""
    layers = DynamicCache(config=config).layers
    is_chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    is_plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) and not is_chunked
    return is_plain and not (_rope_types(config) & {"dynamic", "longrope"})


def _rope_types(config: Any) -> set[str]:
    """How positions are scaled: one way for all layers, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    ways = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    return {str(each["rope_type"]) for each in ways if "rope_type" in each}


def choose_dtype(device: str, asked: str) -> str:
    """`auto` is bfloat16 on accelerators and on CPUs that multiply it natively; elsewhere float32 is as fast."""
    if asked != "auto":
        return asked
    if not device.startswith("cpu"):
        return "bfloat16"
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"
