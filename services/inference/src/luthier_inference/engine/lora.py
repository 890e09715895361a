"""LoRA adapters beside a frozen base: every linear layer asks one shared plan which adapter each row of the batch
uses. Installing an adapter is one dictionary entry, switching costs nothing, and rows of several adapters share a
forward pass."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from luthier_inference.adapter_config import parse_adapter_config
from luthier_inference.domain import BadAdapterError, FilesUnreadableError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_WEIGHTS_BYTES = 2 * 1024**3
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Adapter:
    """Down and up projection of each layer that the adapter touches; the scale is already in the up projection."""

    name: str
    pairs: dict[str, tuple[Tensor, Tensor]]
    num_bytes: int


@dataclass
class Plan:
    """Which adapter serves which rows of the next forward pass; rows None means all of them."""

    parts: list[tuple[Adapter, Tensor | None]] = field(default_factory=list)
    num_layers_done: int = 0
    """Over all forward passes."""

    def arrange(self, adapters: Sequence[Adapter | None], device: torch.device) -> None:
        """One entry a row, None for the base itself."""
        distinct = {adapter.name: adapter for adapter in adapters if adapter is not None}
        if len(distinct) == 1 and None not in adapters:
            self.parts = [(adapter, None) for adapter in distinct.values()]
            return
        self.parts = []
        for name, adapter in distinct.items():
            rows = [row for row, used in enumerate(adapters) if used is not None and used.name == name]
            self.parts.append((adapter, torch.tensor(rows, device=device)))


def attach(model: nn.Module, plan: Plan) -> dict[str, nn.Linear]:
    """Let every linear layer of the model follow the plan; the layers by name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_hook(_make_hook(name, plan))
    return layers


def _make_hook(name: str, plan: Plan) -> Any:
    def add_adapters(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        plan.num_layers_done += 1
        if not plan.parts:
            return None
        for adapter, rows in plan.parts:
            pair = adapter.pairs.get(name)
            if pair is None:
                continue
            down, up = pair
            if rows is None:
                output = output + functional.linear(functional.linear(args[0], down), up)
            else:
                output[rows] += functional.linear(functional.linear(args[0][rows], down), up)
        return output

    return add_adapters


def load_adapter(name: str, directory: Path, layers: dict[str, nn.Linear], dtype: torch.dtype) -> Adapter:
    """Read a peft LoRA adapter; raises `BadAdapterError` unless every tensor fits a layer of the model.

    What the disk does not give raises `FilesUnreadableError`: it says nothing about the adapter.
    """
    try:
        config = parse_adapter_config((directory / CONFIG_FILE).read_bytes())
        if (directory / WEIGHTS_FILE).stat().st_size > MAX_WEIGHTS_BYTES:
            raise BadAdapterError(f"{WEIGHTS_FILE} is too large")
        tensors = load((directory / WEIGHTS_FILE).read_bytes())
    except OSError as error:
        raise FilesUnreadableError(f"the adapter cannot be read: {error.strerror}") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadAdapterError(f"{WEIGHTS_FILE} is not a safetensors file") from error
    sides = _sort_sides(tensors)
    pairs = {}
    for module, both in sides.items():
        _check_pair(module, both, layers, config.rank)
        down, up = both["A"], both["B"]
        device = layers[module].weight.device
        pairs[module] = (down.to(device, dtype), (up.float() * config.scale).to(device, dtype))
    return Adapter(name, pairs, sum(a.nbytes + b.nbytes for a, b in pairs.values()))


def _sort_sides(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.dtype not in _DTYPES or tensor.dim() != 2:
            raise BadAdapterError(f"{WEIGHTS_FILE}: {key} is not supported")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise BadAdapterError(f"{WEIGHTS_FILE} holds no tensor")
    return sides


def _check_pair(module: str, both: dict[str, Tensor], layers: dict[str, nn.Linear], rank: int) -> None:
    layer = layers.get(module)
    if layer is None:
        raise BadAdapterError(f"{WEIGHTS_FILE}: the base has no linear layer {module}")
    if set(both) != {"A", "B"}:
        raise BadAdapterError(f"{WEIGHTS_FILE}: {module} lacks one of lora_A and lora_B")
    wanted = ((rank, layer.in_features), (layer.out_features, rank))
    if (tuple(both["A"].shape), tuple(both["B"].shape)) != wanted:
        raise BadAdapterError(f"{WEIGHTS_FILE}: {module} has another shape than the base")
    if not all(bool(torch.isfinite(side).all()) for side in both.values()):
        raise BadAdapterError(f"{WEIGHTS_FILE}: {module} holds a value that is not finite")
