"""How many requests a key has left in this minute. Pure arithmetic; the clock is handed in.

A window is a minute of the wall clock, so that every process means the same one. A process counts exactly what it
admits itself, and hears now and then what all processes together have admitted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WINDOW_S = 60
MAX_NAMES = 100_000
"""More names than this in one window are not kept apart for ever: the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one more request is admitted, and what is left after it."""

    is_admitted: bool
    limit: int
    remaining: int
    reset_s: float
    """Until the window ends; then everything is left again."""


@dataclass(slots=True)
class _Count:
    heard: int = 0
    """What all processes had admitted, as last heard; own ones that were told are in it."""
    untold: int = 0


class Windows:
    """The counts of the present window, by name."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._number = 0
        self._counts: dict[str, _Count] = {}

    def take(self, name: str, limit: int) -> Verdict:
        """Admit one request if the limit allows it. What is refused does not count."""
        count, reset_s = self._look(name)
        used = count.heard + count.untold
        is_admitted = used < limit
        if is_admitted:
            count.untold += 1
            used += 1
        return Verdict(is_admitted, limit, max(0, limit - used), reset_s)

    def is_full(self, name: str, limit: int) -> bool:
        """Whether the next request of this name would be refused."""
        count, _ = self._look(name)
        return count.heard + count.untold >= limit

    @property
    def reset_s(self) -> float:
        now_s = self._now_s()
        return WINDOW_S - now_s % WINDOW_S

    def untold(self) -> tuple[int, dict[str, int]]:
        """The window's number, and what this process has admitted in it and not told yet."""
        self._turn(self._now_s())
        return self._number, {name: count.untold for name, count in self._counts.items() if count.untold}

    def heard(self, number: int, told: Mapping[str, int], totals: Mapping[str, int]) -> None:
        """`told` was counted, and all processes' totals are these. An earlier window's no longer matter."""
        if number != self._number:
            return
        for name, num_told in told.items():
            count = self._counts.get(name)
            if count is not None:
                count.untold -= num_told
                count.heard = max(count.heard + num_told, totals.get(name, 0))

    def _look(self, name: str) -> tuple[_Count, float]:
        now_s = self._now_s()
        self._turn(now_s)
        count = self._counts.get(name)
        if count is None:
            if len(self._counts) >= MAX_NAMES:
                del self._counts[next(iter(self._counts))]
            count = self._counts[name] = _Count()
        return count, WINDOW_S - now_s % WINDOW_S

    def _turn(self, now_s: float) -> None:
        number = int(now_s // WINDOW_S)
        if number != self._number:
            self._number = number
            self._counts = {}


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """What every answer to a key says about its window."""
    return {
        "x-ratelimit-limit-requests": str(verdict.limit),
        "x-ratelimit-remaining-requests": str(verdict.remaining),
        "x-ratelimit-reset-requests": duration(verdict.reset_s),
    }


def wait_headers(reset_s: float) -> dict[str, str]:
    """When to come again; clients wait as long as they are told, up to a minute."""
    wait_ms = max(1, math.ceil(reset_s * 1000))
    return {"retry-after": str(math.ceil(wait_ms / 1000)), "retry-after-ms": str(wait_ms)}


def duration(seconds: float) -> str:
    """As OpenAI spells it: `12ms`, `1.2s`, `6m0s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{shown}s" if minutes else f"{shown}s"
