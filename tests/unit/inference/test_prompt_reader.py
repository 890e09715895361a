"""Chats are read a few at a time, the rest wait or are sent away, and who leaves makes room."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from builders.waiting import until
from luthier_inference.chat import InvalidRequestError
from luthier_inference.domain import EngineBusyError
from luthier_inference.prompts import AT_ONCE, PromptReader
from luthier_text import TextError


class Slow:
    """Reads a chat when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.num_begun = 0

    def __call__(self, messages: list[dict[str, Any]]) -> list[int]:
        self.num_begun += 1
        assert self.go.wait(20)
        return [len(messages)]

    async def begun(self, num: int) -> None:
        async def seen() -> bool:
            return self.num_begun == num

        await until(seen)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go.set()


async def test_a_few_are_read_some_wait_and_the_rest_come_again_later(slow: Slow) -> None:
    reader = PromptReader(max_waiting=3)
    tasks = [asyncio.create_task(reader.read(slow, [{}])) for _ in range(AT_ONCE + 3)]
    await slow.begun(AT_ONCE)
    with pytest.raises(EngineBusyError):
        await reader.read(slow, [{}])
    slow.go.set()
    assert await asyncio.gather(*tasks) == [(1,)] * len(tasks)


async def test_who_hangs_up_makes_room_at_once_or_when_the_thread_has_ended(slow: Slow) -> None:
    reader = PromptReader(max_waiting=1)
    tasks = [asyncio.create_task(reader.read(slow, [{}])) for _ in range(AT_ONCE + 1)]
    await slow.begun(AT_ONCE)
    tasks[-1].cancel()
    await asyncio.wait(tasks[-1:])
    tasks[0].cancel()
    last = asyncio.create_task(reader.read(slow, [{}, {}]))
    await asyncio.wait(tasks[:1])
    assert slow.num_begun == AT_ONCE
    slow.go.set()
    assert await last == (2,)
    assert slow.num_begun == AT_ONCE + 1


async def test_what_cannot_be_read_is_refused_with_its_code() -> None:
    def refuse(_messages: object) -> list[int]:
        raise TextError("context_length_exceeded", "too long")

    with pytest.raises(InvalidRequestError, match="too long") as caught:
        await PromptReader(max_waiting=0).read(refuse, [])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
