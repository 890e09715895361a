"""Requests without a key that may be the same one again: known by who sends them and by their body.

A client's library may say that it repeats (`x-stainless-retry-count`); else the same body is a repetition only when
the answer before did not arrive as far as this server can see, or when nothing was made for it.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from luthier_api.domain import Principal
from luthier_api.idempotency import DAY_S, Retry, reservation_name
from luthier_api.store.reservations import (
    BELIEVED_S,
    Claim,
    Ended,
    Reserved,
    adopt_former,
    claim_unknown,
    end_repeats,
    is_believed,
    mark_unanswered,
    reserve_repeat,
)
from luthier_common.contract.ids import new_id
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import OUTAGES, Database, Doc
from luthier_common.kit.together import Together

log = logging.getLogger(__name__)
TURN_S = 10.0
"""The same body at the same time waits so long to learn what became of the first one."""
RUNS_S = 3.0
"""The same, where another process runs the first one: it may have ended without a word."""
POLL_S = 0.05
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
        self._claims = Together[Claim, bool](partial(claim_unknown, db))
        self._ends = Together[Ended, None](partial(end_repeats, db))
        self._unmarked: dict[str, str] = {}
        """Cores whose answer did not arrive, where the database was away too."""

    def begin(
        self, principal: Principal, route: str, body: bytes, retry: Retry | None, patience_s: float | None
    ) -> "Repeat":
        """`patience_s`: so long its client waits before it repeats; None where that is not known."""
        owner = (principal.key_id, principal.end_user)
        name = reservation_name(owner, f"body {route}", hashlib.sha256(body).hexdigest())
        keep_s = max(self._ttl_s, min(DAY_S, (patience_s or 0.0) + BELIEVED_S))
        return Repeat(self, name, new_id("", self._clock.now()), retry, keep_s)

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

    async def reserve(
        self, name: str, fresh: str, is_made: IsMade, retry: Retry | None, keep_s: float
    ) -> tuple[str, bool]:
        """The core for this request, and whether another sending may have made something with it."""
        claim = Claim(name, fresh, ttl_s=keep_s, runs_s=RUNS_S)
        is_unknown = await self._claims.add(claim)
        reserved = Reserved(fresh, None) if is_unknown else await self._reserve_known(claim, retry)
        self._unmarked.pop(name, None)
        await failpoint("repeats.after_reserve")
        if reserved.former is None or await is_made(reserved.former):
            return reserved.core, reserved.core != fresh
        await adopt_former(self._db, name, reserved)
        return reserved.former, True

    async def _reserve_known(self, claim: Claim, retry: Retry | None) -> Reserved:
        is_repeat: Doc | bool = claim.name in self._unmarked or (retry is not None and is_believed(retry))
        until_s = self._clock.monotonic_s() + TURN_S
        while True:
            waits = retry is None and self._clock.monotonic_s() < until_s
            reserved = await reserve_repeat(self._db, claim, is_repeat=is_repeat, waits=waits)
            if reserved is not None:
                return reserved
            await asyncio.sleep(POLL_S)

    async def ended(self, name: str, run: str, *, is_answered: bool) -> None:
        """Where it cannot be noted it runs out, and its repetitions are believed for longer."""
        with contextlib.suppress(*OUTAGES):
            await self._ends.add(Ended(name, run, is_answered))

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

    def __init__(self, repeats: Repeats, name: str, fresh: str, retry: Retry | None, keep_s: float) -> None:
        self.fresh = fresh
        """The core that this request gets, unless it is a repetition."""
        self._repeats = repeats
        self._name = name
        self._retry = retry
        self._keep_s = keep_s
        self._turn: asyncio.Event | None = None
        self.is_answered = False
        """Its answer was given to a client that was still there."""
        self.core: str | None = None

    async def reserve(self, is_made: IsMade) -> tuple[str, bool]:
        """As `Repeats.reserve`. Whoever says that it repeats does not wait: its core is that of the first."""
        if self._retry is None:
            self._turn = await self._repeats.take_turn(self._name)
        self.core, was_used = await self._repeats.reserve(self._name, self.fresh, is_made, self._retry, self._keep_s)
        return self.core, was_used

    async def not_answered(self, *, from_s: float = 0.0, for_s: float | None = None) -> None:
        if self.core is not None:
            await self._repeats.not_answered(self._name, self.core, from_s=from_s, for_s=for_s)

    async def end(self) -> None:
        try:
            if self.core is not None:
                await self._repeats.ended(self._name, self.fresh, is_answered=self.is_answered)
        finally:
            if self._turn is not None:
                self._repeats.end_turn(self._name, self._turn)
                self._turn = None
