"""Faults and looks in the middle of an engine's forward passes: half of a tiny base's layers have done their work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel


@contextmanager
def in_each_forward(deed: Callable[[int, int], object]) -> Iterator[None]:
    """Calls `deed` with the rows and the new ids of each forward pass; what it raises, the pass raises."""

    def hook(module: Any, inputs: Any) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.self_attn.layer_idx == 1:
            deed(*inputs[0].shape[:2])

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched_caches() -> Iterator[list[tuple[int, int]]]:
    """Rows and bytes of the cache after each forward pass."""
    seen: list[tuple[int, int]] = []

    def hook(module: Any, _inputs: Any, named: Any, _output: Any) -> None:
        if isinstance(module, LlamaModel):
            layers = named["past_key_values"].layers
            seen.append((layers[0].keys.shape[0], sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)))

    handle = register_module_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
