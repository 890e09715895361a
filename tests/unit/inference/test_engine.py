"""The engine on a tiny base: what a user gets for one request, for several at once, and when things go wrong."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from luthier_inference.domain import (
    BadAdapterError,
    BadBaseError,
    ContextLengthError,
    Delta,
    EngineBusyError,
    EngineFailedError,
    FinishReason,
    Generation,
    Sampling,
    UnknownAdapterError,
)
from luthier_inference.engine.generation import Engine
from luthier_inference.engine.sampling import Sampler

QUESTIONS = ["Hello", "A somewhat longer question, which spans several pieces of prefill.", "?", "Why so?"]


def prompt(engine: Engine, text: str) -> tuple[int, ...]:
    return tuple(engine.text.prompt_ids([{"role": "user", "content": text}]))


def greedy(engine: Engine, text: str, adapter: str | None = None, **sampling: object) -> Generation:
    values = {"max_tokens": 24, "temperature": 0.0, **sampling}
    return Generation(prompt(engine, text), adapter, Sampling(**values))  # type: ignore[arg-type]


async def collect(engine: Engine, asked: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(asked)]


async def answer(engine: Engine, asked: Generation) -> str:
    return "".join(delta.text for delta in await collect(engine, asked))


def by_transformers(engine: Engine, base: Path, adapter: Path | None, ids: tuple[int, ...]) -> str:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=list(engine.text.eos_ids),
            pad_token_id=0,
        )
    text: str = engine.text.decode(made[0, len(ids) :].tolist())
    return text


async def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", [None, "one", "two"])
async def test_greedy_answer_equals_transformers(
    engine: Engine, tiny_base: Path, adapters: dict[str, Path], name: str | None
) -> None:
    if name:
        await engine.load_adapter(name, adapters[name])
    for question in QUESTIONS:
        expected = by_transformers(engine, tiny_base, adapters.get(name or ""), prompt(engine, question))
        assert await answer(engine, greedy(engine, question, name)) == expected


async def test_adapters_answer_differently(engine: Engine, adapters: dict[str, Path]) -> None:
    for name, directory in adapters.items():
        await engine.load_adapter(name, directory)
    answers = {await answer(engine, greedy(engine, "Hello", name)) for name in (None, *adapters)}
    assert len(answers) == 3


async def test_requests_that_run_together_get_what_they_get_alone(engine: Engine, adapters: dict[str, Path]) -> None:
    for name, directory in adapters.items():
        await engine.load_adapter(name, directory)
    asked = [
        greedy(engine, question, name, max_tokens=6 + 5 * at)
        for at, name in enumerate((None, *adapters))
        for question in QUESTIONS[:2]
    ]
    alone = [await answer(engine, one) for one in asked]
    random.Random(3).shuffle(asked)
    together = await asyncio.gather(*(answer(engine, one) for one in asked))
    assert sorted(together) == sorted(alone)


async def test_equal_seeds_give_equal_answers(engine: Engine) -> None:
    def asked(seed: int) -> Generation:
        return greedy(engine, "Hello", temperature=1.0, top_p=0.95, seed=seed)

    assert await answer(engine, asked(1)) == await answer(engine, asked(1))
    assert await answer(engine, asked(1)) != await answer(engine, asked(2))


async def test_tiny_top_p_is_greedy(engine: Engine) -> None:
    sampled = await answer(engine, greedy(engine, "Hello", temperature=1.0, top_p=0.0))
    assert sampled == await answer(engine, greedy(engine, "Hello"))


def choices(num: int, **sampling: Any) -> list[int]:
    sampler = Sampler(Sampling(**sampling), torch.device("cpu"))
    return [sampler.choose(torch.tensor([3.0, 2.0, 1.0, 0.0])) for _ in range(num)]


def test_penalties_make_tokens_that_were_said_less_likely() -> None:
    assert choices(3, temperature=0) == [0, 0, 0]
    assert choices(4, temperature=0, presence_penalty=9) == [0, 1, 2, 3]
    assert choices(4, temperature=0, frequency_penalty=1.5) == [0, 1, 0, 2]


def test_top_p_keeps_the_likeliest() -> None:
    assert set(choices(200, top_p=0.7, seed=1)) == {0, 1}
    assert set(choices(200, top_p=0.0, seed=1)) == {0}
    assert set(choices(500, top_p=1.0, seed=1)) == {0, 1, 2, 3}


async def test_counts_and_length_finish(engine: Engine) -> None:
    deltas = await collect(engine, greedy(engine, "Hello", max_tokens=5, seed=1))
    assert sum(delta.num_tokens for delta in deltas) == 5
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason is FinishReason.LENGTH


async def test_stop_sequence_ends_the_answer_before_it(engine: Engine) -> None:
    whole = await answer(engine, greedy(engine, "Hello"))
    stop = whole[4:7]
    deltas = await collect(engine, greedy(engine, "Hello", stop=(stop,)))
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason is FinishReason.STOP


async def test_answer_ends_with_the_context(engine: Engine) -> None:
    deltas = await collect(engine, greedy(engine, "x" * 200, max_tokens=None, frequency_penalty=-1000.0))
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    num_made = sum(delta.num_tokens for delta in deltas)
    assert len(prompt(engine, "x" * 200)) + num_made == engine.text.context_length


async def test_prompt_beyond_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="256"):
        await collect(engine, greedy(engine, "x" * 300))


async def test_unknown_adapter_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownAdapterError):
        await collect(engine, greedy(engine, "Hello", "nobody"))


async def test_leaving_early_frees_the_row(engine: Engine) -> None:
    stream = engine.generate(greedy(engine, "Hello", max_tokens=200, presence_penalty=-1.0))
    await anext(stream)
    assert engine.num_pending == 1
    await stream.aclose()
    await until(lambda: engine.num_pending == 0)
    assert await answer(engine, greedy(engine, "Hello"))


async def test_too_many_requests_are_refused_and_the_rest_answered(engine: Engine) -> None:
    asked = [collect(engine, greedy(engine, "Hello", max_tokens=100)) for _ in range(20)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    refused = [result for result in results if isinstance(result, EngineBusyError)]
    assert refused
    assert len(refused) + sum(isinstance(result, list) for result in results) == 20


async def test_least_recently_used_adapter_makes_room(engine: Engine, adapters: dict[str, Path]) -> None:
    await engine.load_adapter("a", adapters["one"])
    await engine.load_adapter("b", adapters["two"])
    await answer(engine, greedy(engine, "Hello", "a"))
    await engine.load_adapter("c", adapters["two"])
    assert set(engine.adapters) == {"a", "c"}


async def test_adapter_with_unknown_setting_is_refused(
    engine: Engine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    config = (adapters["one"] / "adapter_config.json").read_text().replace('"use_dora": false', '"use_dora": true')
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.safetensors").write_bytes((adapters["one"] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(BadAdapterError, match="use_dora"):
        await engine.load_adapter("bad", tmp_path)
    assert engine.adapters == ()


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 9])
async def test_weights_that_are_not_safetensors_are_refused(
    engine: Engine, adapters: dict[str, Path], tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "adapter_config.json").write_bytes((adapters["one"] / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(BadAdapterError):
        await engine.load_adapter("bad", tmp_path)


async def test_adapter_of_another_shape_is_refused(engine: Engine, adapters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes((adapters["two"] / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes((adapters["one"] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(BadAdapterError, match="shape"):
        await engine.load_adapter("bad", tmp_path)


async def test_missing_base_is_told(tmp_path: Path, tiny_base: Path) -> None:
    for name in ("text.json", "tokenizer.json", "chat_template.jinja", "config.json"):
        (tmp_path / name).write_bytes((tiny_base / name).read_bytes())
    with pytest.raises(BadBaseError):
        Engine(tmp_path)


async def test_a_request_that_cannot_be_computed_fails_and_leaves_nothing_behind(engine: Engine) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(EngineFailedError):
            await collect(engine, Generation((10**6,)))
        assert await answer(engine, greedy(engine, "Hello"))
    await until(lambda: engine.num_pending == 0)


async def test_stopping_fails_what_is_under_way(tiny_base: Path) -> None:
    engine = Engine(tiny_base)
    asked = greedy(engine, "Hello", max_tokens=230, frequency_penalty=-1000.0)
    tasks = [asyncio.create_task(collect(engine, asked)) for _ in range(16)]
    await until(lambda: engine.num_pending == 16)
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(result, EngineFailedError) for result in results)
    with pytest.raises(EngineFailedError):
        await collect(engine, asked)
