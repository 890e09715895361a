"""Answers that were sent and may not have arrived, for clients that repeat a request without saying so.

The meetkai-mka1 client sends a request again when its connection breaks, with nothing that tells it from a new one. So
for this client, and no other, a connection that ends right behind an answer makes the same body within the client's own
waiting time a repetition. Its connections stay open between requests otherwise. Behind a proxy nothing is known so:
its connections are not those of its clients, and many end behind each answer.
"""

import asyncio

from luthier_api.services.repeats import Repeat
from luthier_common.kit.clock import Clock

UNMARKED_CLIENTS = b"speakeasy-sdk/"
"""How the user agent of such a client begins."""
ENDS_WITHIN_S = 1.0
REPEATS_AFTER_S = 0.4
REPEATS_WITHIN_S = 7.0
"""It waits at least 0.5 s and at most 5 s before it sends a request again."""
MAX_KEPT = 10_000
Address = tuple[str, int]


class Connections:
    """The last answer on each open connection of such a client."""

    def __init__(self, clock: Clock, *, is_behind_proxies: bool) -> None:
        self._clock = clock
        self._is_behind_proxies = is_behind_proxies
        self._answered: dict[Address, tuple[Repeat, float]] = {}
        self._marking: set[asyncio.Task[None]] = set()

    def answered(self, client: Address, repeat: Repeat) -> None:
        if self._is_behind_proxies:
            return
        if len(self._answered) >= MAX_KEPT:
            self._answered.clear()
        self._answered[client] = repeat, self._clock.monotonic_s()

    def lost(self, client: Address | None) -> None:
        """A connection has ended; whoever ended it."""
        repeat, answered_s = self._answered.pop(client, (None, 0.0)) if client else (None, 0.0)
        since_s = self._clock.monotonic_s() - answered_s
        if repeat is not None and since_s <= ENDS_WITHIN_S:
            # A busy process sees the end late; the client may have waited since the answer.
            from_s = max(0.0, REPEATS_AFTER_S - since_s)
            marking = asyncio.create_task(repeat.not_answered(from_s=from_s, for_s=REPEATS_WITHIN_S))
            self._marking.add(marking)
            marking.add_done_callback(self._marking.discard)
