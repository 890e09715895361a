"""What one request does to those beside it: nothing, whatever it asks for and whatever goes wrong for it."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.engine_asks import answer, answer_all, ask
from builders.engine_faults import in_each_forward, watched_caches
from builders.waiting import until
from luthier_inference.domain import BrokenWeightsError, EngineBusyError, EngineFailedError, Generation
from luthier_inference.engine.batch import Batch, Prefill, Row
from luthier_inference.engine.failures import MOST_FAILURES
from luthier_inference.engine.generation import Engine
from luthier_inference.engine.model import load_base
from luthier_inference.engine.worker import EngineLimits
from luthier_inference.engines import LoadedBase

QUESTIONS = ["Hello", "Why so?", "A somewhat longer question, which spans several pieces of prefill.", "?"]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-5])
async def test_the_smallest_temperature_is_greedy_and_hurts_nobody(
    engine: Engine, temperature: float, top_p: float
) -> None:
    asked = [ask(engine, question) for question in QUESTIONS[:3]]
    alone = [await answer(engine, one) for one in asked]
    coldest = ask(engine, "Hello", temperature=temperature, top_p=top_p)
    assert await answer_all(engine, [coldest, *asked]) == [alone[0], *alone]


async def test_an_adapter_that_computes_no_numbers_ends_its_own_answers_only(
    engine: Engine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["one"], tmp_path / "wild")
    weights = load_file(tmp_path / "wild/adapter_model.safetensors")
    wild = {name: torch.full_like(tensor, 1e30) for name, tensor in weights.items()}
    save_file(wild, tmp_path / "wild/adapter_model.safetensors")
    await engine.load_adapter("wild", tmp_path / "wild")
    alone = await answer(engine, ask(engine, "Hello"))
    broken, *others = await answer_all(
        engine, [ask(engine, "Hello", adapter="wild"), *[ask(engine, "Hello") for _ in range(3)]]
    )
    assert isinstance(broken, BrokenWeightsError)
    assert others == [alone] * 3


def test_a_score_that_forbids_a_token_is_legal(engine: Engine) -> None:
    scores = torch.full((384,), -torch.inf)
    scores[7] = 1.0
    row = Row(ask(engine, "Hello", temperature=1.0, max_tokens=3), None, engine.text, torch.device("cpu"))
    row.take(scores)
    assert row.ids[-1] == 7
    for broken in (torch.nan, torch.inf):
        scores[9] = broken
        with pytest.raises(BrokenWeightsError):
            row.take(scores)


async def test_a_prompt_that_cannot_be_read_hurts_nobody(engine: Engine) -> None:
    alone = await answer(engine, ask(engine, "Hello"))
    bad, good = await answer_all(engine, [Generation((10**6,)), ask(engine, "Hello")])
    assert isinstance(bad, EngineFailedError)
    assert good == alone


async def test_a_step_that_fails_ends_what_runs_and_not_what_waits(engine: Engine) -> None:
    faults = iter([RuntimeError("a kernel failed")])
    alone = await answer(engine, ask(engine, "Hello"))

    def fail_once(num_rows: int, num_ids: int) -> None:
        if num_rows == 4 and num_ids == 1 and (fault := next(faults, None)):
            raise fault

    with in_each_forward(fail_once):
        results = await answer_all(engine, [ask(engine, "Hello") for _ in range(8)])
    assert [str(result) for result in results[4:]] == [alone] * 4
    assert all(isinstance(result, EngineFailedError) for result in results[:4])


@torch.inference_mode()
def test_a_row_that_finds_no_memory_to_join_leaves_the_others_as_they_were(
    tiny_base: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = load_base(tiny_base, "cpu", "float32"), Batch()

    def read(question: str) -> Prefill:
        row = Row(ask(engine, question), None, engine.text, model.device)
        done = Prefill(row, model.new_cache())
        logits = done.advance(model, 1000)
        assert logits is not None
        row.take(logits)
        return done

    batch.join(read(QUESTIONS[0]))
    before = [layer.keys.clone() for layer in batch.cache.layers]  # type: ignore[attr-defined]
    done, join, num_calls = read(QUESTIONS[2]), torch.cat, 0

    def run_out(tensors: Any, *args: Any, **named: Any) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 9:  # the first layer is done: each takes six
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return join(tensors, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", run_out)
        with pytest.raises(torch.OutOfMemoryError):
            batch.join(done)
    after = [layer.keys for layer in batch.cache.layers]  # type: ignore[attr-defined]
    assert len(batch.rows) == 1
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


async def test_rows_that_would_need_more_memory_than_there_may_be_wait_and_lose_nothing(tiny_base: Path) -> None:
    """A token takes 256 bytes; the answers begin together, and grow until there is room for half of them."""
    limit = 130 * 256
    engine = Engine(tiny_base, dtype="float32", limits=EngineLimits(max_rows=8, prefill_tokens=16, cache_bytes=limit))
    try:
        asked = [ask(engine, "?", max_tokens=40) for _ in range(6)] + [ask(engine, "x" * 150, max_tokens=40)]
        alone = [await answer(engine, one) for one in asked]
        pieces: list[int] = []
        with watched_caches() as seen, in_each_forward(lambda _, num_ids: pieces.append(num_ids)):
            assert await answer_all(engine, asked) == alone
    finally:
        engine.close()
    assert max(num_rows for num_rows, _ in seen) > 1
    assert all(num_bytes <= limit for num_rows, num_bytes in seen if num_rows > 1)
    assert max(num_bytes for _, num_bytes in seen) > limit, "a row alone is answered all the same"
    assert sum(num_ids for num_ids in pieces if num_ids > 1) < 3 * sum(len(one.prompt_ids) for one in asked)


async def test_projects_take_turns_and_the_one_with_the_most_gives_way(tiny_base: Path) -> None:
    engine = Engine(tiny_base, dtype="float32", limits=EngineLimits(max_rows=1, max_waiting=6))
    ended: list[str] = []

    async def run(project: str) -> None:
        await answer(engine, ask(engine, "Hello", project, max_tokens=20))
        ended.append(project)

    begin = threading.Event()
    try:
        with in_each_forward(lambda *_: None if begin.wait(20) else pytest.fail("nobody lets it begin")):
            crowd = [asyncio.create_task(run("crowd")) for _ in range(7)]
            await until(_is(lambda: engine.num_pending == 7))
            others = [asyncio.create_task(run("other")) for _ in range(2)]
            await until(_is(lambda: sum(task.done() for task in crowd) == 2))
            begin.set()
            results = await asyncio.gather(*crowd, *others, return_exceptions=True)
    finally:
        begin.set()
        engine.close()
    assert [type(result) for result in results[5:7]] == [EngineBusyError] * 2, "the newest of the crowd give way"
    assert ended == ["crowd", "other", "crowd", "other", "crowd", "crowd", "crowd"]


async def test_an_adapter_is_read_while_others_are_answered(engine: Engine, adapters: dict[str, Path]) -> None:
    go_on = threading.Event()
    with in_each_forward(lambda *_: go_on.wait(60)):
        answering = asyncio.create_task(answer(engine, ask(engine, "Hello")))
        try:
            await until(_is(lambda: engine.num_pending == 1))
            async with asyncio.timeout(20):
                await engine.load_adapter("one", adapters["one"])
            assert not answering.done()
        finally:
            go_on.set()
        assert await answering
    assert engine.adapters == ("one",)


@pytest.mark.parametrize(
    ("fault", "num_asked"), [(torch.AcceleratorError("CUDA error"), 1), (RuntimeError("no kernel"), MOST_FAILURES)]
)
async def test_an_engine_that_can_never_compute_again_says_so(engine: Engine, fault: Exception, num_asked: int) -> None:
    def fail(_num_rows: int, num_ids: int) -> None:
        if num_ids == 1:
            raise fault

    with in_each_forward(fail):
        for _ in range(num_asked):
            assert engine.broken is None
            with pytest.raises(EngineFailedError):
                await answer(engine, ask(engine, "Why so?"))
        await until(_is(lambda: engine.broken is not None))
    with pytest.raises(EngineFailedError):
        await answer(engine, ask(engine, "Why so?"))


def test_a_fingerprint_names_all_that_decides_on_an_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    base = LoadedBase("tiny", "0123456789abcdef", engine)
    before = base.fingerprint
    assert before.startswith("fp_0123456789_float32_")
    monkeypatch.setattr(torch, "__version__", "another")
    assert base.fingerprint != before


def _is(condition: Callable[[], bool]) -> Callable[[], Any]:
    async def seen() -> bool:
        return condition()

    return seen
