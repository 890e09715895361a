"""A MongoDB driver that has written and says it does not know: what a connection cut at the wrong instant gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pymongo.errors import AutoReconnect

from luthier_common.kit.mongo import Collection, Doc

_losses: ContextVar[int] = ContextVar("losses", default=0)


def lose_next(number: int) -> None:
    """In this context the answers of so many of the next writes are lost."""
    _losses.set(number)


@contextmanager
def losing_driver(collection: str = "jobs") -> Iterator[None]:
    """Within the block `lose_next` has an effect, on writes to things of one kind."""
    real = Collection.find_one_and_update

    async def find_one_and_update(self: Collection, *args: Any, **more: Any) -> Doc | None:
        found: Doc | None = await real(self, *args, **more)
        if self.name == collection and (left := _losses.get()) > 0:
            _losses.set(left - 1)
            raise AutoReconnect("lost on purpose")
        return found

    Collection.find_one_and_update = find_one_and_update
    try:
        yield
    finally:
        Collection.find_one_and_update = real
