"""Chats as ids, a few at a time: megabytes of text take seconds, and the node must go on answering and renewing."""

import asyncio
from collections.abc import Callable
from typing import Any

from luthier_inference.chat import InvalidRequestError
from luthier_inference.domain import EngineBusyError
from luthier_text import TextError

AT_ONCE = 2
Messages = list[dict[str, Any]]
PromptIds = Callable[[Messages], list[int]]


class PromptReader:
    """Reads so many chats at once, in threads; at most `max_waiting` wait. Who leaves gives up the place."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def read(self, prompt_ids: PromptIds, messages: Messages) -> tuple[int, ...]:
        """What `prompt_ids` makes of them; raises `InvalidRequestError`, and `EngineBusyError` when too many wait."""
        if self._turn.locked() and self._num_waiting >= self._max_waiting:
            raise EngineBusyError("Too many requests wait to be read; try again later.")
        self._num_waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._num_waiting -= 1
        reading = asyncio.create_task(asyncio.to_thread(_read, prompt_ids, messages))
        # A thread goes on when its caller has left: only its end makes room.
        reading.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(reading)


def _read(prompt_ids: PromptIds, messages: Messages) -> tuple[int, ...]:
    try:
        return tuple(prompt_ids(messages))
    except TextError as error:
        raise InvalidRequestError(error.code, error.message, "messages") from error
