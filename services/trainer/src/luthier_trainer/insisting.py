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
    """`await insist(work)` repeats transient failures with growing pauses, up to a cap, or until it is given up.

    The cap counts from the first failure: for as long as `work` went well before, the server was there.
    """

    def __init__(
        self,
        cap_s: float,
        is_given_up: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cap_s = cap_s
        self._is_given_up = is_given_up
        self._now_s = now_s

    async def __call__(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns in the end; raises its last error."""
        failed_at_s: float | None = None
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await work()
            except Exception as error:
                if failed_at_s is None:
                    failed_at_s = self._now_s()
                is_over = self._now_s() - failed_at_s >= self._cap_s or self._is_given_up()
                if is_over or not is_transient(error):
                    raise
                log.warning("%s: %s; trying again", type(error).__name__, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
