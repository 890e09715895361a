"""What comes at the same time goes into one call, and everybody gets their own answer."""

import asyncio
from collections.abc import Sequence

import pytest

from luthier_common.kit.together import Together


class Squares:
    """Answers when told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        await self.may_answer.wait()
        if 0 in numbers:
            raise ValueError("not of nothing")
        return [number * number for number in numbers]


async def _asked(squares: Squares, number_of_calls: int) -> None:
    while len(squares.calls) < number_of_calls:
        await asyncio.sleep(0)


async def test_what_comes_while_a_call_is_under_way_goes_into_the_next_one() -> None:
    squares = Squares()
    together = Together[int, int](squares)
    first = asyncio.create_task(together.add(2))
    await _asked(squares, 1)
    rest = [asyncio.create_task(together.add(number)) for number in (3, 4, 5)]
    await asyncio.sleep(0)
    assert squares.calls == [[2]], "one at a time"
    squares.may_answer.set()
    assert [await task for task in (first, *rest)] == [4, 9, 16, 25]
    assert squares.calls == [[2], [3, 4, 5]]
    assert await together.add(6) == 36


async def test_a_failed_call_fails_those_it_took_and_nobody_else() -> None:
    squares = Squares()
    together = Together[int, int](squares)
    tasks = [asyncio.create_task(together.add(number)) for number in (0, 1)]
    await _asked(squares, 1)
    later = asyncio.create_task(together.add(7))
    await asyncio.sleep(0)
    squares.may_answer.set()
    for task in tasks:
        with pytest.raises(ValueError, match="nothing"):
            await task
    assert await later == 49


async def test_a_call_that_answers_too_few_is_an_error_and_keeps_nobody_waiting() -> None:
    async def answer_one(numbers: Sequence[int]) -> list[int]:
        return list(numbers[:1])

    together = Together[int, int](answer_one)
    answers = await asyncio.wait_for(asyncio.gather(together.add(1), together.add(2), return_exceptions=True), 5)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]


async def test_who_stops_waiting_takes_nothing_from_the_others() -> None:
    squares = Squares()
    together = Together[int, int](squares)
    leaves, stays = [asyncio.create_task(together.add(number)) for number in (8, 9)]
    await _asked(squares, 1)
    leaves.cancel()
    await asyncio.wait({leaves})
    squares.may_answer.set()
    assert await stays == 81
