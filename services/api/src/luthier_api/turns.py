"""How many may do something at a time: in all, and each."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from luthier_api.errors import ApiError


class Turns:
    """Turns of this process, each taken for an owner."""

    def __init__(self, most_each: int, most: int | None = None) -> None:
        self._most_each = most_each
        self._most = most
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, owner: str, refusal: ApiError) -> Iterator[None]:
        """A turn as long as the block lasts; raises `refusal` when the owner, or all together, have all that may be."""
        if self._taken[owner] >= self._most_each or self._taken.total() >= (self._most or float("inf")):
            raise refusal
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]


class Lines:
    """Turns of this process that are waited for: so many of each owner at a time, in the order in which they came."""

    def __init__(self, most_each: int) -> None:
        self._most_each = most_each
        self._lines: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, owner: str) -> asyncio.Semaphore:
        """The owner's line, as long as somebody stands in it."""
        return self._lines.setdefault(owner, asyncio.Semaphore(self._most_each))
