"""A GGUF file becomes a base bundle: config, safetensors, tokenizer and chat template, without torch.

Run by `luthier_registry.base_import`. One tensor is in memory at a time. Only what is
known to come out right is converted: the llama architecture without rope scaling, and tokenizers whose
pre-tokenizer stands in `PRE_TOKENIZERS`; anything else is refused with a code.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import ReaderTensor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier_registry.bundle import (
    BundleFile,
    BundleManifest,
    BundleSource,
    file_sha256,
    files_digest,
    present_bundle,
    publish_bundle,
    staging_directory,
    write_bundle_file,
)
from luthier_registry.default_base import CONVERTER, SMOLLM2_NAME
from luthier_registry.gguf_read import (
    GgufImportError,
    LlamaShape,
    Vocabulary,
    name_tensors,
    open_gguf,
    optional_value,
    read_shape,
    read_vocabulary,
    read_weights,
    tensor_shape,
)
from luthier_registry.trial import choose_text
from luthier_text import TextConfig

TOKEN_CONTROL, TOKEN_USER_DEFINED = 3, 4
DTYPE_NAME, SAFETENSORS_DTYPE = "float32", "F32"

PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    # llama.cpp splits every digit first; plain byte level gives other ids where spaces stand before digits.
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
}


def import_gguf(gguf: Path, target: Path, name: str = SMOLLM2_NAME) -> BundleManifest:
    """Convert `gguf` into the bundle directory `target` and return its manifest.

    The directory appears complete or not at all. A bundle of the same file by the same converter is left as it is;
    anything else at `target` is `BundleExistsError`.
    """
    source = BundleSource(file=gguf.name, bytes=gguf.stat().st_size, sha256=file_sha256(gguf))
    if present := present_bundle(target, source.sha256, CONVERTER):
        return present
    reader = open_gguf(gguf)
    shape, vocabulary, tensors = read_shape(reader), read_vocabulary(reader), name_tensors(reader)
    with staging_directory(target) as staging:
        files = _write_files(staging, shape, vocabulary, tensors)
        manifest = BundleManifest(
            name=name,
            revision=source.sha256,
            digest=files_digest(files),
            architecture="LlamaForCausalLM",
            licence=optional_value(reader, "general.license"),
            num_parameters=sum(int(np.prod(tensor.shape)) for tensor in tensors.values()),
            dtype=DTYPE_NAME,
            context_length=shape.context_length,
            source=source,
            converter=CONVERTER,
            files=files,
        )
        return publish_bundle(staging, target, manifest)


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The byte-level BPE tokenizer that llama.cpp runs for this vocabulary."""
    if vocabulary.pre not in PRE_TOKENIZERS:
        raise GgufImportError("gguf_unsupported_tokenizer", f"pre-tokenizer {vocabulary.pre!r} is not supported")
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[vocabulary.pre]()
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(vocabulary.tokens, vocabulary.token_types, strict=True))
    tokenizer.add_special_tokens([_added(token, True) for token, kind in typed if kind == TOKEN_CONTROL])
    tokenizer.add_tokens([_added(token, False) for token, kind in typed if kind == TOKEN_USER_DEFINED])
    return tokenizer


def _write_files(
    staging: Path, shape: LlamaShape, vocabulary: Vocabulary, tensors: dict[str, ReaderTensor]
) -> list[BundleFile]:
    tokenizer, template = build_tokenizer(vocabulary).to_str(pretty=True), vocabulary.chat_template
    text = choose_text(tokenizer.encode(), template, _text_config(shape, vocabulary), shape.vocab_size)
    documents = {
        "config.json": _config(shape, vocabulary),
        "generation_config.json": _generation_config(vocabulary),
        "tokenizer_config.json": _tokenizer_config(shape, vocabulary),
        "text.json": text.model_dump(mode="json"),
    }
    texts = {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in documents.items()}
    texts["tokenizer.json"] = tokenizer
    texts["chat_template.jinja"] = template
    files = [write_bundle_file(staging / name, partial(_write_text, text)) for name, text in sorted(texts.items())]
    weights = write_bundle_file(staging / "model.safetensors", partial(_write_safetensors, shape, tensors))
    return [*files, weights]


def _write_text(text: str, stream: BinaryIO) -> None:
    stream.write(text.encode())


def _write_safetensors(shape: LlamaShape, tensors: dict[str, ReaderTensor], stream: BinaryIO) -> None:
    """The safetensors layout by hand: its library wants every tensor in memory, twice."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        size = int(np.prod(tensor.shape)) * np.dtype(np.float32).itemsize
        header[name] = {
            "dtype": SAFETENSORS_DTYPE,
            "shape": tensor_shape(tensor),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(len(encoded).to_bytes(8, "little") + encoded)
    for name, tensor in sorted(tensors.items()):
        weights = np.ascontiguousarray(read_weights(name, tensor, shape), dtype="<f4")
        stream.write(weights.data)


def _config(shape: LlamaShape, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.special_ids["bos"],
        "eos_token_id": vocabulary.special_ids["eos"],
        "pad_token_id": vocabulary.special_ids["pad"],
        "head_dim": shape.hidden_size // shape.num_heads,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
        "mlp_bias": False,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.ties_embeddings,
        "torch_dtype": DTYPE_NAME,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    named = {f"{role}_token_id": vocabulary.special_ids[role] for role in ("bos", "eos", "pad")}
    return {"_from_model_config": False, **{name: index for name, index in named.items() if index is not None}}


def _tokenizer_config(shape: LlamaShape, vocabulary: Vocabulary) -> dict[str, Any]:
    # Any class that is named after a model makes transformers rebuild the pre-tokenizer: the wrong one.
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context_length,
        **_special_tokens(vocabulary),
    }


def _text_config(shape: LlamaShape, vocabulary: Vocabulary) -> TextConfig:
    end = vocabulary.special("eos")
    return TextConfig(
        **_special_tokens(vocabulary), generation_eos=[end] if end else [], context_length=shape.context_length
    )


def _special_tokens(vocabulary: Vocabulary) -> dict[str, str | None]:
    return {f"{role}_token": vocabulary.special(role) for role in ("bos", "eos", "pad", "unk")}


def _added(token: str, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)
