"""Ends a run that makes no progress: tells why, dumps every thread's stack, aborts."""

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

_FACTOR = 10


class Watchdog:
    """`beat` before each piece of work and after the last; none for too long calls `on_stall` and aborts.

    Too long is `stall_after_s`, or ten times what so much work takes at the median pace of the last pieces, whichever
    is more. It is `load_s` until a first piece was measured, and while files are read or written whole.
    """

    def __init__(self, stall_after_s: float, load_s: float, on_stall: Callable[[], None]) -> None:
        self._stall_after_s = stall_after_s
        self._load_s = max(load_s, stall_after_s)
        self._on_stall = on_stall
        self._paces_s: deque[float] = deque(maxlen=100)
        self._work = 0
        self._began_at = time.monotonic()
        # One value, written at once: the thread must not see a new limit with an old beat.
        self._stalled_at = self._began_at + self._load_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, work: int = 0) -> None:
        """Progress was made; next comes one piece of so much work (a token that a forward reads is 1)."""
        now = time.monotonic()
        if self._work:
            self._paces_s.append((now - self._began_at) / self._work)
        self._began_at, self._work = now, work
        self._stalled_at = now + self._allowed_s(work)

    def beat_before_files(self) -> None:
        """Progress was made; next, files are read or written whole."""
        self.beat()
        self._stalled_at = self._began_at + self._load_s

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _allowed_s(self, work: int) -> float:
        if not work:
            return self._stall_after_s
        if not self._paces_s:
            return self._load_s
        return max(self._stall_after_s, _FACTOR * work * statistics.median(self._paces_s))

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._stall_after_s / 4)):
            if time.monotonic() > self._stalled_at:
                self._on_stall()
                os.abort()
