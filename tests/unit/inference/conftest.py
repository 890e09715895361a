"""A tiny random Llama, LoRA adapters made by peft, and an engine on it."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from builders.bases import make_tiny_base
from luthier_inference.engine.generation import Engine
from luthier_inference.engine.worker import EngineLimits


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights are made large, so that answers are varied."""
    directory = make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")
    weights = load_file(directory / "model.safetensors")
    loud = {name: tensor * 6 if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    save_file(loud, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters as peft saves them, one with rank-stabilised scale and fewer layers."""
    made: dict[str, Path] = {}
    configs = {
        "one": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        "two": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], use_rslora=True),
    }
    for name, config in configs.items():
        torch.manual_seed(len(made) + 1)
        config.init_lora_weights = False
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
        made[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(str(made[name]))
    return made


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[Engine]:
    engine = Engine(
        tiny_base, dtype="float32", limits=EngineLimits(max_rows=4, max_waiting=4, max_adapters=2, prefill_tokens=16)
    )
    yield engine
    engine.close()
