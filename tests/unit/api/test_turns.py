"""How many may do something at a time: in all, and each."""

import asyncio

import pytest

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.turns import Lines, Turns

REFUSAL = ApiError(ErrorCode.TOO_MANY_GENERATIONS, "too many")


def test_each_has_so_many_turns_and_gets_them_back() -> None:
    turns = Turns(2)
    with turns.taken("a", REFUSAL), turns.taken("a", REFUSAL), turns.taken("b", REFUSAL):
        with pytest.raises(ApiError), turns.taken("a", REFUSAL):
            pass
        with turns.taken("b", REFUSAL):
            pass
    with turns.taken("a", REFUSAL):
        pass


def test_all_together_have_so_many_whatever_ends_a_turn() -> None:
    turns = Turns(1, 2)

    def fail() -> None:
        with turns.taken("a", REFUSAL), turns.taken("b", REFUSAL):
            with pytest.raises(ApiError), turns.taken("c", REFUSAL):
                pass
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()


def test_a_refusal_says_when_to_come_again() -> None:
    assert (REFUSAL.status, REFUSAL.headers["retry-after"]) == (429, "1")


async def test_a_line_lets_so_many_in_and_the_others_in_order() -> None:
    lines, through = Lines(1), []

    async def stand(owner: str, name: str) -> None:
        async with lines.of(owner):
            await asyncio.sleep(0)
            through.append(name)

    async with lines.of("a"):
        waiting = [asyncio.create_task(stand("a", name)) for name in ("a1", "a2")]
        await stand("b", "b1")
        assert through == ["b1"]
    await asyncio.gather(*waiting)
    assert through == ["b1", "a1", "a2"]
