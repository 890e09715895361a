"""Who has stopped renewing: values watched on one's own monotonic clock. Pure."""

from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Watch(Generic[Key]):
    """Notes since when each value has been seen unchanged.

    Only time that was really watched counts: after a pause longer than half a TTL, whatever its cause (an outage of
    the database, a stall of this process), every value gets a whole TTL again.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: dict[Key, tuple[Any, float]] = {}
        self._looked_at_s: float | None = None

    def forget(self) -> None:
        """Begin anew, for one who could not look."""
        self._seen.clear()
        self._looked_at_s = None

    def look(self, values: Mapping[Key, Any], now_s: float) -> list[Key]:
        """The keys whose value has been the same for a TTL. `values` is everything that is watched now."""
        if self._looked_at_s is not None and now_s - self._looked_at_s > self._ttl_s / 2:
            self.forget()
        self._looked_at_s = now_s
        seen = {}
        for key, value in values.items():
            before = self._seen.get(key)
            seen[key] = before if before is not None and before[0] == value else (value, now_s)
        self._seen = seen
        return [key for key, (_, since_s) in seen.items() if now_s - since_s >= self._ttl_s]
