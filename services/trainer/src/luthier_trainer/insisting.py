"""Repeating what a server did not answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from luthier_common.kit.room import is_transient

log = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 10.0


class Insist:
    """`await insist(work)` repeats transient failures with growing pauses, up to a cap, or until it is given up."""

    def __init__(self, cap_s: float, is_given_up: Callable[[], bool] = lambda: False) -> None:
        self._cap_s = cap_s
        self._is_given_up = is_given_up

    async def __call__(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns in the end; raises its last error."""
        began_at, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return await work()
            except Exception as error:
                is_over = time.monotonic() - began_at > self._cap_s or self._is_given_up()
                if is_over or not is_transient(error):
                    raise
                log.warning("%s: %s; trying again", type(error).__name__, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
