"""What transformers saves, named in LUTHIER_BASE_SOURCES, is trained on and served: architectures, and in shards."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders.bases import TINY_TEMPLATE, make_tiny_base, write_chat_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from luthier_common.kit.bases import fetch_base, find_base
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore
from luthier_inference.domain import Generation, Sampling
from luthier_inference.engine.generation import Engine
from luthier_inference.engine.worker import EngineLimits
from luthier_registry.catalogue import Catalogue
from luthier_registry.claims import Claims
from luthier_registry.settings import RegistrySettings
from luthier_registry.store import Store
from luthier_trainer.protocol import Finished, RunSpec
from luthier_trainer.training.progress import ProgressWriter
from luthier_trainer.training.sft import train
from luthier_trainer.training.stopping import StopFlag
from luthier_trainer.training.watchdog import Watchdog

# transformers and trl warn about names that they themselves still use.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 384, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    # It has no fused attention: the slow one is taken instead.
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)),
}


def save_as_transformers_does(directory: Path, model: Any, scratch: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size="24KB")
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(make_tiny_base(scratch) / "tokenizer.json"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TINY_TEMPLATE,
    )
    tokenizer.save_pretrained(directory)


def train_on(base: Path, tmp_path: Path) -> Finished:
    hyperparameters = {
        "n_epochs": 1, "batch_size": 2, "learning_rate": 1e-2, "lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0,
        "context_length": 128,
    }  # fmt: skip
    spec = RunSpec.model_validate({
        "job_id": "ftjob-1", "attempt": 1, "seed": 7, "num_threads": 1, "device": "cpu", "base_dir": base,
        "train_file": write_chat_file(tmp_path / "train.jsonl", 4), "output_dir": tmp_path / "run",
        "hyperparameters": hyperparameters,
    })  # fmt: skip
    out = ProgressWriter(os.open(os.devnull, os.O_WRONLY))
    watchdog = Watchdog(120, 600, lambda: None)
    try:
        finished = train(spec, out, StopFlag(), watchdog)
    finally:
        watchdog.close()
        out.close()
    assert isinstance(finished, Finished)
    return finished


async def answer(engine: Engine, adapter: str | None) -> int:
    prompt = tuple(engine.text.prompt_ids([{"role": "user", "content": "Where is parcel 1?"}]))
    asked = Generation(prompt, adapter, Sampling(max_tokens=4, temperature=0.0))
    return len([delta async for delta in engine.generate(asked)])


@pytest.mark.parametrize("architecture", MODELS)
async def test_a_saved_model_is_trained_and_served(
    db: Database, objects: ObjectStore, tmp_path: Path, architecture: str
) -> None:
    source = tmp_path / "models" / architecture
    torch.manual_seed(7)
    save_as_transformers_does(source, MODELS[architecture](), tmp_path / "scratch")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    values: dict[str, Any] = {"mongo_url": "mongodb://unused", "kafka_url": "unused", "objects_url": "file:///unused"}
    settings = RegistrySettings(
        **values, home=tmp_path / "home", default_base="my-model", base_sources={"my-model": source}
    )
    catalogue = Catalogue(Store(db), objects, Claims(db, "registry-1", 5.0), settings)
    await catalogue.look()
    assert await catalogue.missing() is None
    base = await find_base(db, "my-model")
    assert base is not None
    assert base["num_parameters"] == sum(weight.numel() for weight in MODELS[architecture]().parameters())
    assert base["architecture"].lower() == f"{architecture}forcausallm"

    fetched = await fetch_base(db, objects, "my-model", tmp_path / "cache")
    assert json.loads((fetched / "bundle.json").read_bytes())["dtype"] == "bfloat16"
    finished = train_on(fetched, tmp_path)
    engine = Engine(fetched, limits=EngineLimits(max_rows=2, max_waiting=2, max_adapters=1, prefill_tokens=16))
    try:
        await engine.load_adapter("adapter", finished.directory)
        assert await answer(engine, None) >= 1
        assert await answer(engine, "adapter") >= 1
    finally:
        engine.close()
