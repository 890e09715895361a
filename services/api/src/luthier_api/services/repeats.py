"""Requests without a key that may be the same one again: known by who sends them and by their body.

A client's library may say that it repeats (`x-stainless-retry-count`); else the same body is a repetition only when
the answer before did not arrive as far as this server can see, or when nothing was made for it.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable

from luthier_api.domain import Principal
from luthier_api.idempotency import reservation_name
from luthier_api.store.reservations import adopt_former, mark_unanswered, reserve_repeat
from luthier_common.contract.ids import new_id
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, Database

log = logging.getLogger(__name__)
TURN_S = 10.0
"""The same body at the same time waits so long to learn what became of the first one."""
MAX_REMEMBERED = 1000
IsMade = Callable[[str], Awaitable[bool]]
"""Whether something was made with a core."""


class Repeats:
    """What this process knows of them, over what the database knows."""

    def __init__(self, db: Database, clock: Clock, *, ttl_s: float) -> None:
        self._db = db
        self._clock = clock
        self._ttl_s = ttl_s
        self._running: dict[str, asyncio.Event] = {}
        self._unmarked: dict[str, str] = {}
        """Cores whose answer did not arrive, where the database was away too."""

    def begin(self, principal: Principal, route: str, body: bytes, *, is_repeat: bool) -> "Repeat":
        owner = (principal.key_id, principal.end_user)
        name = reservation_name(owner, f"body {route}", hashlib.sha256(body).hexdigest())
        return Repeat(self, name, new_id("", self._clock.now()), is_repeat)

    async def take_turn(self, name: str) -> asyncio.Event:
        """One after the other; the one before is over, or takes longer than anybody waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                while (running := self._running.get(name)) is not None:
                    await running.wait()
        turn = self._running[name] = asyncio.Event()
        return turn

    def end_turn(self, name: str, turn: asyncio.Event) -> None:
        turn.set()
        if self._running.get(name) is turn:
            del self._running[name]

    async def reserve(self, name: str, fresh: str, is_made: IsMade, *, is_repeat: bool) -> tuple[str, bool]:
        """The core for this request, and whether another sending may have made something with it."""
        unmarked = self._unmarked.get(name)
        reserved = await reserve_repeat(
            self._db, name, fresh, ttl_s=self._ttl_s, is_repeat=is_repeat or unmarked is not None
        )
        self._unmarked.pop(name, None)
        await failpoint("repeats.after_reserve")
        if reserved.former is None or await is_made(reserved.former):
            return reserved.core, reserved.core != fresh
        await adopt_former(self._db, name, reserved)
        return reserved.former, True

    async def not_answered(self, name: str, core: str, *, from_s: float, for_s: float | None) -> None:
        try:
            await mark_unanswered(self._db, name, core, from_s=from_s, for_s=for_s or self._ttl_s)
        except OUTAGES as error:
            log.warning("an unanswered request is known to this process only: %s", type(error).__name__)
            if len(self._unmarked) >= MAX_REMEMBERED:
                self._unmarked.clear()
            self._unmarked[name] = core


class Repeat:
    """One request that may be a repetition, from its beginning to its answer."""

    def __init__(self, repeats: Repeats, name: str, fresh: str, is_repeat: bool) -> None:
        self.fresh = fresh
        """The core that this request gets, unless it is a repetition."""
        self._repeats = repeats
        self._name = name
        self._is_repeat = is_repeat
        self._turn: asyncio.Event | None = None
        self.core: str | None = None

    async def reserve(self, is_made: IsMade) -> tuple[str, bool]:
        """As `Repeats.reserve`. Whoever says that it repeats does not wait: its core is that of the first."""
        if not self._is_repeat:
            self._turn = await self._repeats.take_turn(self._name)
        self.core, was_used = await self._repeats.reserve(self._name, self.fresh, is_made, is_repeat=self._is_repeat)
        return self.core, was_used

    async def not_answered(self, *, from_s: float = 0.0, for_s: float | None = None) -> None:
        if self.core is not None:
            await self._repeats.not_answered(self._name, self.core, from_s=from_s, for_s=for_s)

    def end(self) -> None:
        if self._turn is not None:
            self._repeats.end_turn(self._name, self._turn)
            self._turn = None
