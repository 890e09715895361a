"""An engine that has no memory left, no room, or cannot compute: who waits, who is told so, and who notices nothing."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.bases import CONTEXT
from builders.engine_asks import answer, answer_all, ask
from builders.engine_faults import in_each_forward
from builders.waiting import until
from luthier_inference.domain import ContextLengthError, EngineBusyError, EngineFailedError, Generation
from luthier_inference.engine.failures import MOST_FAILURES
from luthier_inference.engine.generation import Engine, make_engine
from luthier_inference.engine.memory import free_bytes
from luthier_inference.engine.worker import EngineLimits
from luthier_inference.settings import InferenceSettings

QUESTIONS = ["Hello", "Why so?", "A somewhat longer question, which spans several pieces of prefill.", "?"]
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


def make_settings(**changes: Any) -> InferenceSettings:
    return InferenceSettings(mongo_url="mongodb://unused", kafka_url="unused", objects_url="file:///unused", **changes)


async def test_a_prompt_that_is_longer_than_the_context_is_refused_while_others_are_answered(tiny_base: Path) -> None:
    """It would never fit beside them, and all who come later would wait with it."""
    engine = Engine(tiny_base, dtype="float32", limits=EngineLimits(max_rows=4, cache_bytes=130 * 256))
    go_on = threading.Event()
    try:
        with in_each_forward(lambda *_: go_on.wait(60)):
            answering = asyncio.create_task(answer(engine, ask(engine, "Hello")))
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                with pytest.raises(ContextLengthError):
                    await answer(engine, Generation((5,) * (CONTEXT + 1)))
            assert not answering.done()
            go_on.set()
            assert await answering
    finally:
        go_on.set()
        engine.close()


@pytest.mark.parametrize("fault", OUT_OF_MEMORY)
async def test_when_memory_runs_out_some_wait_and_nobody_fails(engine: Engine, fault: Exception) -> None:
    asked = [ask(engine, question) for question in QUESTIONS]
    alone = [await answer(engine, one) for one in asked]
    faults, most_rows = iter([fault]), []

    def run_out_once(num_rows: int, num_ids: int) -> None:
        if num_rows == 4 and num_ids == 1 and (out := next(faults, None)):
            raise out
        most_rows.append(num_rows)

    before = engine.cache_bytes
    with in_each_forward(run_out_once):
        assert await answer_all(engine, asked) == alone
    assert max(most_rows) == 3, "what was too much is not tried again"
    assert engine.cache_bytes < before


@pytest.mark.parametrize("fault", OUT_OF_MEMORY)
async def test_a_prompt_that_finds_no_memory_waits_until_it_is_alone(engine: Engine, fault: Exception) -> None:
    asked = [ask(engine, "Hello"), ask(engine, "x" * 40)]
    alone = [await answer(engine, one) for one in asked]
    num_decoded = 0

    def run_out(_num_rows: int, num_ids: int) -> None:
        nonlocal num_decoded
        num_decoded += num_ids == 1
        if num_ids > 1 and 0 < num_decoded < 20:
            raise fault

    with in_each_forward(run_out):
        assert await answer_all(engine, asked) == alone


async def test_rows_that_cannot_even_be_cut_out_for_want_of_memory_are_read_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [ask(engine, question) for question in QUESTIONS]
    alone = [await answer(engine, one) for one in asked]
    make_tensor, faults = torch.tensor, iter([OUT_OF_MEMORY[0]])

    def run_out_once(num_rows: int, num_ids: int) -> None:
        if num_rows == 4 and num_ids == 1 and (out := next(faults, None)):
            monkeypatch.setattr(torch, "tensor", run_out_again)
            raise out

    def run_out_again(*args: Any, **named: Any) -> torch.Tensor:
        """The next tensor says which rows stay."""
        monkeypatch.setattr(torch, "tensor", make_tensor)
        assert args[0] == [0, 1, 2]
        raise OUT_OF_MEMORY[0]

    with in_each_forward(run_out_once):
        assert await answer_all(engine, asked) == alone


async def test_who_finds_no_memory_though_nobody_else_is_there_is_told_so(engine: Engine) -> None:
    def run_out(_num_rows: int, num_ids: int) -> None:
        if num_ids == 1:
            raise OUT_OF_MEMORY[0]

    with in_each_forward(run_out):
        async with asyncio.timeout(30):
            with pytest.raises(EngineFailedError):
                await answer(engine, ask(engine, "Hello"))
    assert await answer(engine, ask(engine, "Hello"))


def test_bases_in_memory_promise_together_less_than_there_is(tiny_base: Path) -> None:
    engine = make_engine(tiny_base, make_settings(engine_max_bases=4))
    engine.close()
    assert 4 * engine.cache_bytes < free_bytes(torch.device("cpu"))


def test_a_base_that_made_room_is_gone_before_the_next_one_is_loaded(tiny_base: Path) -> None:
    first: list[Any] = [make_engine(tiny_base, make_settings())]
    first[0].close()
    former = weakref.ref(first[0])
    first.append(first)  # what refers to itself is only found by looking for it
    del first
    gc.disable()
    try:
        make_engine(tiny_base, make_settings()).close()
    finally:
        gc.enable()
    assert former() is None


async def test_an_engine_that_can_read_no_prompt_any_more_says_so(engine: Engine) -> None:
    """One that fails however often it comes may be at fault itself."""

    def fail(_num_rows: int, num_ids: int) -> None:
        if num_ids > 1:
            raise RuntimeError("no kernel for this")

    with in_each_forward(fail):
        for question in ["Hello"] * MOST_FAILURES + ["Why so?", "And now?"]:
            assert engine.broken is None
            with pytest.raises(EngineFailedError):
                await answer(engine, ask(engine, question))
        await until(_broken(engine))


async def test_prompts_that_fail_while_others_are_read_end_no_engine(engine: Engine) -> None:
    def fail(_num_rows: int, num_ids: int) -> None:
        if num_ids == 3:
            raise RuntimeError("no kernel for this")

    with in_each_forward(fail):
        for last in range(2 * MOST_FAILURES):
            with pytest.raises(EngineFailedError):
                await answer(engine, Generation((5, 6, last)))
            assert await answer(engine, ask(engine, "Hello"))
    assert engine.broken is None


async def test_an_adapter_for_which_there_is_no_room_is_not_even_read(
    engine: Engine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for name, directory in adapters.items():
        await engine.load_adapter(name, directory)
    go_on = threading.Event()
    with in_each_forward(lambda *_: go_on.wait(60)):
        answering = [asyncio.create_task(answer(engine, ask(engine, "Hello", adapter=name))) for name in adapters]
        try:
            await asyncio.sleep(0)
            with pytest.raises(EngineBusyError):
                await engine.load_adapter("third", tmp_path / "nowhere")
        finally:
            go_on.set()
        await asyncio.gather(*answering)


async def test_an_engine_that_takes_long_for_a_step_is_seen_to_get_on(engine: Engine) -> None:
    """The prompt and the token after it are one turn of the engine: on a slow machine, of a large model, minutes."""
    seen: list[int] = []
    with in_each_forward(lambda *_: seen.append(engine.progress)):
        await answer(engine, ask(engine, "?", max_tokens=2))
    assert len(seen) == 2
    assert seen[0] < seen[1] - 1


def _broken(engine: Engine) -> Any:
    async def is_broken() -> bool:
        return engine.broken is not None

    return is_broken
