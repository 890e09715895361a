"""Ends a run that makes no progress: tells why, dumps every thread's stack, aborts."""

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

_FACTOR = 10


class Watchdog:
    """`beat` after each step (or part of an evaluation); none for too long calls `on_stall` and aborts.

    Too long is `stall_after_s` or ten times the median of the last steps, whichever is more. Before the first beat,
    while libraries, data and weights are loaded, it is `load_s`.
    """

    def __init__(self, stall_after_s: float, load_s: float, on_stall: Callable[[], None]) -> None:
        self._stall_after_s = stall_after_s
        self._limit_s = load_s
        self._on_stall = on_stall
        self._durations_s: deque[float] = deque(maxlen=100)
        self._beaten_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Progress was made."""
        now = time.monotonic()
        self._durations_s.append(now - self._beaten_at)
        self._limit_s = max(self._stall_after_s, _FACTOR * statistics.median(self._durations_s))
        self._beaten_at = now

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._stall_after_s / 4)):
            if time.monotonic() - self._beaten_at > self._limit_s:
                self._on_stall()
                os.abort()
