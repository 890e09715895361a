"""Waiting for what a user would see, with a deadline instead of a pause."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(
    seen: Callable[[], Awaitable[T | bool | None]], *, within_s: float = 20.0, every_s: float = 0.02, what: str = ""
) -> T:
    """The first truthy answer of `seen`. Raises AssertionError with the last answer after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        answer = await seen()
        if answer:
            return answer  # type: ignore[return-value]
        if time.monotonic() > deadline:
            raise AssertionError(f"not seen within {within_s} s: {what or seen}; last answer: {answer!r}")
        await asyncio.sleep(every_s)
