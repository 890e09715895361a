"""A device whose memory is small, on a CPU: it raises what torch raises, in the middle of the work, as a GPU would."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


@contextmanager
def memory_for(num_tokens: int, *, recomputing: int = 0) -> Iterator[list[int]]:
    """Room for forwards of so many tokens, or of more where activations are computed again; what did not fit.

    A forward that is trained on fails in its backward, when the last layer's gradients are there.
    """
    failed: list[int] = []

    def watch(module: Any, _inputs: Any, output: Any) -> None:
        if not isinstance(module, LlamaDecoderLayer) or module.self_attn.layer_idx:
            return
        held = output.shape[0] * output.shape[1]
        if held <= (max(num_tokens, recomputing) if module.gradient_checkpointing else num_tokens):
            return

        def run_out(_gradient: Any = None) -> None:
            failed.append(held)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        if output.requires_grad:
            output.register_hook(run_out)
        else:
            run_out()

    handle = register_module_forward_hook(watch)
    try:
        yield failed
    finally:
        handle.remove()
