"""This engine as a node: it joins, renews its document with what it serves, keeps the default base loaded, and ends
what it has begun before it leaves."""

import asyncio
from contextlib import suppress
from pathlib import Path

from luthier_common.kit import presence
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.room import TRANSIENT_ERRORS
from luthier_inference.engines import EnginePool
from luthier_inference.serving import Serving
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore


class Node:
    """What this node says of itself, and when."""

    def __init__(
        self, store: InferenceStore, serving: Serving, pool: EnginePool, address: str, settings: InferenceSettings
    ) -> None:
        self._store = store
        self._serving = serving
        self._pool = pool
        self._address = address
        self._settings = settings
        self._has_joined = False

    async def renew(self) -> None:
        """Say that the node lives; join first, and again after it was called lost."""
        device = self._pool.device or _expected_device(self._settings)
        if not self._has_joined:
            await self._store.join(device, self._address)
            await failpoint("inference.after_join")
            self._has_joined = True
        await failpoint("inference.before_renew")
        served, ready = await self._serving.list_served(), await self._serving.list_ready()
        bases = [base["_id"] for base in ready]
        resting = [base["_id"] for base in served if base["_id"] not in bases]
        models = sorted({name.partition("@")[0] for name in self._pool.adapters})
        self._has_joined = await self._store.renew(
            bases, resting, models, device, is_draining=self._serving.is_draining
        )
        await presence.announce(self._store.db, "inference", self._store.node)

    async def load_default(self) -> None:
        """Load the default base as soon as the catalogue has it, and announce it at once."""
        if await self._serving.load_default():
            await self.renew()

    async def check(self) -> str | None:
        """What keeps this node from answering with the default base, for `/readyz`."""
        return None if self._pool.has(self._pool.default) else f"{self._settings.default_base} is not loaded"

    async def drain(self, stopping: asyncio.Event) -> None:
        """Once the room stops: take nothing new, say so, and let the answers under way end, for a bounded time.

        Nobody waits for those of an engine that is lost.
        """
        await stopping.wait()
        self._serving.is_draining = True
        if self._pool.is_lost:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.engine_drain_s):
                while True:
                    with suppress(*TRANSIENT_ERRORS):
                        await self.renew()
                    if await self._is_idle(within_s=self._settings.renew_s):
                        return

    async def _is_idle(self, within_s: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._serving.idle.wait(), within_s)
        return self._serving.idle.is_set()

    async def leave(self) -> None:
        """Say that the node stops."""
        await self._store.leave()
        await presence.leave(self._store.db, "inference", self._store.node)


def _expected_device(settings: InferenceSettings) -> str:
    """Where the engine will run, as far as can be told without it."""
    if settings.engine_device != "auto":
        return settings.engine_device
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
