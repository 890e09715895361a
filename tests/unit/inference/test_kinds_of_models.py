"""Rows of models whose layers see only a window, or all ids, are decoded together and as transformers does it."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from luthier_inference.domain import Generation, Sampling
from luthier_inference.engine.generation import Engine
from luthier_inference.engine.model import load_base
from luthier_inference.engine.worker import EngineLimits

SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW: dict[str, Any] = {"sliding_window": 8}
KINDS = {
    "gemma2": Gemma2Config(**SIZES, **WINDOW, head_dim=8),
    "gemma3": Gemma3TextConfig(**SIZES, **WINDOW, head_dim=8, layer_types=["sliding_attention", "full_attention"]),
    "phi3": Phi3Config(**SIZES, **WINDOW),
    "mistral": MistralConfig(**SIZES, **WINDOW),
    "qwen2": Qwen2Config(**SIZES),
}
PROMPTS = [tuple(range(5, 5 + num_ids)) for num_ids in (3, 30, 61)]


def make_model(config: Any, tiny_base: Path, directory: Path) -> Path:
    """A base of this kind with the tiny one's tokenizer; its weights are large, so that answers are varied."""
    torch.manual_seed(1)
    model = Auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(str(directory))
    for name in ("tokenizer.json", "chat_template.jinja", "text.json"):
        shutil.copy(tiny_base / name, directory)
    return directory


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_together_get_what_transformers_gives_each_alone(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    directory = make_model(KINDS[kind], tiny_base, tmp_path / "base")
    engine = Engine(directory, dtype="float32", limits=EngineLimits(prefill_tokens=16))
    model = Auto.from_pretrained(directory).eval()

    def expected(ids: tuple[int, ...]) -> str:
        made = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24, do_sample=False, eos_token_id=list(engine.text.eos_ids), pad_token_id=0,
        )  # fmt: skip
        text: str = engine.text.decode(made[0, len(ids) :].tolist())
        return text

    async def answer(ids: tuple[int, ...]) -> str:
        asked = Generation(ids, None, Sampling(max_tokens=24, temperature=0.0))
        return "".join([delta.text async for delta in engine.generate(asked)])

    try:
        assert load_base(directory, "cpu", "float32").can_batch
        assert await asyncio.gather(*(answer(ids) for ids in PROMPTS)) == [expected(ids) for ids in PROMPTS]
    finally:
        engine.close()


@pytest.mark.parametrize("way", ["dynamic", "longrope"])
def test_a_model_whose_positions_depend_on_the_longest_row_answers_one_at_a_time_and_says_so(
    way: str, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    scaling = {"rope_type": way, "factor": 4.0, "rope_theta": 1e4, **(more if way == "longrope" else {})}
    directory = make_model(LlamaConfig(**SIZES, rope_parameters=scaling), tiny_base, tmp_path / "base")
    assert not load_base(directory, "cpu", "float32").can_batch
    assert "this kind of model answers one request at a time" in caplog.messages
