"""This engine as a node: it joins, renews its document with what it serves, and keeps the default base loaded."""

import logging
from pathlib import Path

from luthier_common.kit import presence
from luthier_common.kit.errors import LuthierError, TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_inference.engines import EnginePool
from luthier_inference.serving import Serving
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore
from luthier_text import TextError

logger = logging.getLogger(__name__)


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
        self._said: str | None = None
        self._has_joined = False

    async def renew(self) -> None:
        """Say that the node lives; join first, and again after it was called lost."""
        device = self._pool.device or _expected_device(self._settings)
        if not self._has_joined:
            await self._store.join(device, self._address)
            await failpoint("inference.after_join")
            self._has_joined = True
        await failpoint("inference.before_renew")
        bases = [base["_id"] for base in await self._serving.list_ready()]
        models = sorted({name.partition("@")[0] for name in self._pool.adapters})
        self._has_joined = await self._store.renew(bases, models, device)
        await presence.announce(self._store.db, "inference", self._store.node)

    async def leave(self) -> None:
        """Say that the node stops."""
        await self._store.leave()
        await presence.leave(self._store.db, "inference", self._store.node)

    async def load_default(self) -> None:
        """Load the default base as soon as the catalogue has it, and announce it at once."""
        try:
            if await self._serving.load_default():
                await self.renew()
        except TransientError:
            raise
        except (LuthierError, TextError) as error:
            if self._said != str(error):
                logger.exception("the default base cannot be loaded")
            self._said = str(error)

    async def check(self) -> str | None:
        """What keeps this node from answering with the default base, for `/readyz`."""
        name = self._settings.default_base
        return None if self._pool.has(name) else f"{name} is not loaded"


def _expected_device(settings: InferenceSettings) -> str:
    """Where the engine will run, as far as can be told without it."""
    if settings.engine_device != "auto":
        return settings.engine_device
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
