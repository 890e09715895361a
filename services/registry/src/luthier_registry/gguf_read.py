"""What a llama GGUF states about itself: shape, vocabulary and tensors under their Hugging Face names."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

from luthier_registry.errors import BaseImportError

TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAME = re.compile(r"blk\.(\d+)\.(.+)")
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


class GgufImportError(BaseImportError):
    """The file cannot become a base bundle; `code` is stable."""


@dataclass(frozen=True)
class LlamaShape:
    """The numbers of a llama model, as its GGUF metadata states them."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    ties_embeddings: bool


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer part of the metadata; the four special tokens as text."""

    pre: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    special_ids: dict[str, int | None]
    chat_template: str

    def special(self, role: str) -> str | None:
        """The text of `bos`, `eos`, `pad` or `unk`."""
        index = self.special_ids[role]
        return None if index is None else self.tokens[index]


def open_gguf(path: Path) -> GGUFReader:
    """Map the file; only its header is read here."""
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise GgufImportError("gguf_unreadable", f"{path.name} is not a readable GGUF file") from error


def read_shape(reader: GGUFReader) -> LlamaShape:
    """The shape of the model, or `GgufImportError` where we would get it wrong."""
    architecture = _required(reader, "general.architecture")
    scaling = optional_value(reader, "llama.rope.scaling.type")
    if architecture != "llama" or scaling not in (None, "none"):
        raise GgufImportError("gguf_unsupported_architecture", "only llama models without rope scaling are converted")
    num_heads = int(_required(reader, "llama.attention.head_count"))
    shape = LlamaShape(
        num_layers=int(_required(reader, "llama.block_count")),
        num_heads=num_heads,
        num_kv_heads=int(optional_value(reader, "llama.attention.head_count_kv") or num_heads),
        hidden_size=int(_required(reader, "llama.embedding_length")),
        intermediate_size=int(_required(reader, "llama.feed_forward_length")),
        vocab_size=len(_required(reader, "tokenizer.ggml.tokens")),
        context_length=int(_required(reader, "llama.context_length")),
        rope_theta=float(optional_value(reader, "llama.rope.freq_base") or 10_000.0),
        # Stored as a 32-bit float: its shortest spelling is the number that was meant (1e-05).
        rms_norm_eps=float(str(np.float32(_required(reader, "llama.attention.layer_norm_rms_epsilon")))),
        ties_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
    )
    if int(_required(reader, "llama.rope.dimension_count")) * num_heads != shape.hidden_size:
        raise GgufImportError("gguf_unsupported_architecture", "partial rotary dimensions are not converted")
    return shape


def read_vocabulary(reader: GGUFReader) -> Vocabulary:
    """The tokenizer's data and the chat template, all of which a base bundle needs."""
    model, adds_bos = _required(reader, "tokenizer.ggml.model"), optional_value(reader, "tokenizer.ggml.add_bos_token")
    if model != "gpt2" or adds_bos:
        raise GgufImportError("gguf_unsupported_tokenizer", "only byte-level BPE without a leading token is converted")
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    return Vocabulary(
        pre=_required(reader, "tokenizer.ggml.pre"),
        tokens=_required(reader, "tokenizer.ggml.tokens"),
        token_types=_required(reader, "tokenizer.ggml.token_type"),
        merges=_required(reader, "tokenizer.ggml.merges"),
        special_ids={role: optional_value(reader, f"tokenizer.ggml.{key}_token_id") for role, key in keys.items()},
        chat_template=_required(reader, "tokenizer.chat_template"),
    )


def name_tensors(reader: GGUFReader) -> dict[str, ReaderTensor]:
    """The tensors by Hugging Face name; a tensor that we do not know is refused, not dropped."""
    named = {}
    for tensor in reader.tensors:
        layer = LAYER_NAME.fullmatch(tensor.name)
        if tensor.name in TOP_TENSORS:
            named[TOP_TENSORS[tensor.name]] = tensor
        elif layer and layer[2] in LAYER_TENSORS:
            named[f"model.layers.{layer[1]}.{LAYER_TENSORS[layer[2]]}"] = tensor
        else:
            raise GgufImportError("gguf_unsupported_architecture", f"unknown tensor {tensor.name}")
    return named


def tensor_shape(tensor: ReaderTensor) -> list[int]:
    """The shape as numpy and torch see it; GGUF counts dimensions from the inside."""
    return [int(size) for size in reversed(tensor.shape)]


def read_weights(name: str, tensor: ReaderTensor, shape: LlamaShape) -> NDArray[np.float32]:
    """One tensor, dequantised to float32 and in Hugging Face order."""
    try:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise GgufImportError("gguf_unsupported_quantisation", f"{tensor.tensor_type.name} is not supported") from error
    weights = weights.reshape(tensor_shape(tensor))
    if name.endswith("q_proj.weight"):
        return unpermute(weights, shape.num_heads)
    if name.endswith("k_proj.weight"):
        return unpermute(weights, shape.num_kv_heads)
    return weights


def unpermute(weights: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo the row order that llama.cpp gives to q and k: pairs of rotary halves interleaved, per head."""
    half = weights.shape[0] // num_heads // 2
    return weights.reshape(num_heads, half, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def optional_value(reader: GGUFReader, key: str) -> Any:
    """One metadata value, or None where the file lacks it."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _required(reader: GGUFReader, key: str) -> Any:
    value = optional_value(reader, key)
    if value is None:
        raise GgufImportError("gguf_missing_metadata", f"the file lacks {key}")
    return value
