"""Conversations that do not fit: what is left out of them, and what finding that out costs."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from builders.engines import Engine, joined
from integration.api.conftest import TINY, Api


@pytest.fixture
async def engine(api: Api) -> AsyncIterator[Engine]:
    engine = Engine("engine-truncation")
    async with joined(api.db, engine, TINY):
        yield engine


@pytest.fixture
def sdk(api: Api) -> AsyncOpenAI:
    return api.sdk()


async def test_what_does_not_fit_is_refused_or_left_out_from_the_oldest(engine: Engine, sdk: AsyncOpenAI) -> None:
    engine.fits = 3
    turns: Any = [{"role": "system", "content": "s"}]
    for number in range(3):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    turns.append({"role": "user", "content": "last"})
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model=TINY, input=turns)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    await sdk.responses.create(model=TINY, input=turns, truncation="auto")
    assert [message["content"] for message in engine.asked[-1]["messages"]] == ["s", "last"]
    engine.fits = 0
    with pytest.raises(openai.BadRequestError):
        await sdk.responses.create(model=TINY, input=turns, truncation="auto")


@pytest.mark.parametrize("fits", [2, 6, 14, 18, 20])
async def test_no_more_of_the_oldest_turns_is_left_out_than_must_be(
    engine: Engine, sdk: AsyncOpenAI, fits: int
) -> None:
    """Ten questions with nine answers; a question goes together with its answer."""
    turns: list[Any] = [{"role": "system", "content": "s"}]
    for number in range(9):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    turns.append({"role": "user", "content": "last"})
    engine.fits = fits
    made = await sdk.responses.create(model=TINY, input=turns, truncation="auto")
    seen = [message["content"] for message in engine.asked[-1]["messages"]]
    num_kept = (fits - 2) // 2 * 2
    assert seen == ["s", *(turn["content"] for turn in turns[1:-1][18 - num_kept :]), "last"]
    assert "max_completion_tokens" not in engine.asked[-1], "the answer itself is as long as it may be"
    assert made.model_extra is not None
    assert made.model_extra["x_dropped_messages"] == len(turns) - len(seen)
    stored = await sdk.responses.retrieve(made.id)
    assert (stored.model_extra or {})["x_dropped_messages"] == len(turns) - len(seen)


async def test_a_long_conversation_costs_engines_few_looks(engine: Engine, sdk: AsyncOpenAI) -> None:
    """Of two hundred questions and answers fifty fit; what is left out beyond need is a sixteenth at most."""
    turns: list[Any] = []
    for number in range(200):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    turns.append({"role": "user", "content": "last"})
    engine.fits = 101
    await sdk.responses.create(model=TINY, input=turns, truncation="auto")
    assert len(engine.asked) <= 1 + 4 + 1
    assert 101 - len(turns) // 16 <= len(engine.asked[-1]["messages"]) <= 101


async def test_a_single_question_that_does_not_fit_is_refused_at_once(engine: Engine, sdk: AsyncOpenAI) -> None:
    engine.fits = 0
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model=TINY, input="much", truncation="auto")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert len(engine.asked) == 1
