"""A GGUF file becomes a base bundle: config, safetensors, tokenizer and chat template, without torch.

Run alone: `python -m luthier_registry.gguf_import GGUF OUT_DIR`. One tensor is in memory at a time. Only what is
known to come out right is converted: the llama architecture without rope scaling, and tokenizers whose
pre-tokenizer stands in `PRE_TOKENIZERS`; anything else is refused with a code.
"""

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import ReaderTensor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier_registry.bundle import (
    BundleExistsError,
    BundleFile,
    BundleManifest,
    BundleSource,
    file_sha256,
    files_digest,
    publish_bundle,
    read_manifest,
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

TOKEN_CONTROL, TOKEN_USER_DEFINED = 3, 4
PR_SET_PDEATHSIG = 1
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
    if target.exists():
        present = read_manifest(target)
        if present is None or (present.revision, present.converter) != (source.sha256, CONVERTER):
            raise BundleExistsError(f"{target} exists and is not the bundle of {gguf.name}")
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
    documents = {
        "config.json": _config(shape, vocabulary),
        "generation_config.json": _generation_config(vocabulary),
        "tokenizer_config.json": _tokenizer_config(shape, vocabulary),
        "text.json": _text_config(shape, vocabulary),
    }
    texts = {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in documents.items()}
    texts["tokenizer.json"] = build_tokenizer(vocabulary).to_str(pretty=True)
    texts["chat_template.jinja"] = vocabulary.chat_template
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


def _text_config(shape: LlamaShape, vocabulary: Vocabulary) -> dict[str, Any]:
    end = vocabulary.special("eos")
    return {
        **_special_tokens(vocabulary),
        "generation_eos": [end] if end else [],
        "context_length": shape.context_length,
        "variables": {},
    }


def _special_tokens(vocabulary: Vocabulary) -> dict[str, str | None]:
    return {f"{role}_token": vocabulary.special(role) for role in ("bos", "eos", "pad", "unk")}


def _added(token: str, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)


def _die_with(parent_pid: int) -> bool:
    """Whether the parent still lives; from now on the kernel ends this process with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent_pid


def main(arguments: list[str] | None = None) -> int:
    """The command line; what went wrong is said in one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m luthier_registry.gguf_import", description="GGUF to base bundle")
    parser.add_argument("gguf", type=Path, help="the GGUF file")
    parser.add_argument("out_dir", type=Path, help="the bundle directory to make")
    parser.add_argument("--name", default=SMOLLM2_NAME, help="the name of the base model")
    parser.add_argument("--parent-pid", type=int, help="end when this process, which started us, ends")
    options = parser.parse_args(arguments)
    if options.parent_pid is not None and not _die_with(options.parent_pid):
        return 1
    try:
        manifest = import_gguf(options.gguf, options.out_dir, options.name)
    except (GgufImportError, BundleExistsError) as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"io_error: {error.strerror}: {error.filename}\n")
        return 1
    sys.stdout.write(f"{manifest.name} {manifest.digest} {options.out_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
