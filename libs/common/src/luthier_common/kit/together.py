"""Many small calls as few larger ones, without making the first of them wait."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """What comes while a call is under way goes into the next one, all of it together."""

    def __init__(self, call: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> None:
        """`call` answers every item, in their order."""
        self._call = call
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._calling: asyncio.Task[None] | None = None

    async def add(self, item: T) -> R:
        """The item's answer, or what the call that took it raised. Who stops waiting takes nothing back."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._calling is None:
            self._calling = asyncio.create_task(self._call_until_none_waits())
        return await answer

    async def _call_until_none_waits(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                await self._answer(taken)
        finally:
            self._calling = None

    async def _answer(self, taken: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            answers = await self._call([item for item, _ in taken])
            answered = list(zip(taken, answers, strict=True))
        except Exception as error:
            for _, answer in taken:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for (_, answer), its in answered:
                if not answer.done():
                    answer.set_result(its)
