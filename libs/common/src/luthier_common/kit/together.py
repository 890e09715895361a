"""Many small writes as few larger ones, without making the first of them wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """What comes while a call is under way goes into the next one, all of it together."""

    def __init__(self, call: Callable[[list[T]], Awaitable[object]]) -> None:
        self._call = call
        self._items: list[T] = []
        self._next: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def add(self, item: T) -> None:
        """Returns when the call that took it has ended, and raises what that raised."""
        self._items.append(item)
        if self._next is None:
            self._next = asyncio.create_task(self._go())
        await asyncio.shield(self._next)

    async def _go(self) -> None:
        async with self._one_at_a_time:
            items, self._items, self._next = self._items, [], None
            await self._call(items)
