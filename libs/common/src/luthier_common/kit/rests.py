"""What failed rests for a while that grows with each failure, so that it takes nothing from the others."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from luthier_common.kit.clock import Clock

FORGOTTEN_AFTER_S = 3600.0
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class _Rest:
    until_s: float
    num_failures: int


class Rests(Generic[Key]):
    """The first rest lasts `first_s`, each further one twice as long, none longer than `most_s`."""

    def __init__(self, clock: Clock, *, first_s: float, most_s: float) -> None:
        self._clock = clock
        self._first_s = first_s
        self._most_s = most_s
        self._rests: dict[Key, _Rest] = {}

    def begin(self, key: Key) -> float:
        """It failed; for how many seconds it rests now."""
        now_s = self._clock.monotonic_s()
        num_before = self._rests[key].num_failures if key in self._rests else 0
        rest_s = min(self._most_s, self._first_s * 2.0 ** min(num_before, 32))
        self._rests = {k: rest for k, rest in self._rests.items() if now_s - rest.until_s < FORGOTTEN_AFTER_S}
        self._rests[key] = _Rest(now_s + rest_s, num_before + 1)
        return rest_s

    def end(self, key: Key) -> None:
        """It went well: its next failure is a first one again."""
        self._rests.pop(key, None)

    def is_resting(self, key: Key) -> bool:
        return key in self._rests and self._clock.monotonic_s() < self._rests[key].until_s
