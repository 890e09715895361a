"""The bases in memory. The engine package, and torch with it, is imported when the first base is loaded: until then
the process stays small."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.rests import Rests
from luthier_inference.settings import InferenceSettings

if TYPE_CHECKING:
    from luthier_inference.engine.generation import Engine

logger = logging.getLogger(__name__)


LOAD_REST_S = 60.0
MOST_LOAD_REST_S = 3600.0


class EngineLoadingError(TransientError):
    """The base is being loaded, or no base can make room for it."""

    code = "engine_loading"


class BaseUnloadableError(TransientError):
    """This machine could not load the base a moment ago: for want of memory or disk, or for what is in the bundle."""

    code = "engine_failed"


@dataclass(frozen=True)
class LoadedBase:
    """A base that answers. `name` is that of the catalogue, `digest` names the bundle it was loaded from."""

    name: str
    digest: str
    engine: "Engine"

    @property
    def fingerprint(self) -> str:
        """Changes when the same seed may give another answer."""
        return f"fp_{self.digest[:10]}_{self.engine.dtype}_{self.engine.computes_with}"


def load_engine(directory: Path, settings: InferenceSettings) -> "Engine":
    """Takes seconds and, the first time, imports torch. Raises what `Engine` raises, or the want of memory."""
    # OpenMP's threads spin while they wait for each other: on cores that others use too, that makes an engine crawl.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    made: Engine = import_module("luthier_inference.engine.generation").make_engine(directory, settings)
    return made


class EnginePool:
    """Loads bases on demand, one at a time, and keeps the last used."""

    def __init__(
        self, fetch: Callable[[Doc, Collection[str]], Awaitable[Path]], settings: InferenceSettings, clock: Clock
    ) -> None:
        self._fetch = fetch
        self._settings = settings
        self._loaded: dict[str, LoadedBase] = {}
        self._loading = asyncio.Lock()
        self._rests: Rests[str] = Rests(clock, first_s=LOAD_REST_S, most_s=MOST_LOAD_REST_S)
        self._num_uses: Counter[str] = Counter()
        self.is_lost = False
        """Whether one of them will never answer again: then the process ends."""
        self.default: str | None = None
        """The catalogue's name of the base that makes room for no other, once it is known."""

    @property
    def loaded(self) -> list[LoadedBase]:
        """The bases in memory, the one used longest ago first."""
        return list(self._loaded.values())

    def has(self, name: str | None) -> bool:
        """Whether the base with this name in the catalogue is in memory."""
        return any(base.name == name for base in self._loaded.values())

    def is_loaded(self, digest: str) -> bool:
        return digest in self._loaded

    def is_resting(self, digest: str) -> bool:
        """Whether the base could not be loaded, and is not tried again yet."""
        return self._rests.is_resting(digest)

    @property
    def device(self) -> str | None:
        """Where the engines run; None before the first base is loaded."""
        return next((base.engine.device for base in self._loaded.values()), None)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters in memory, over all bases."""
        return tuple(name for base in self._loaded.values() for name in base.engine.adapters)

    @asynccontextmanager
    async def use(self, base: Doc, wait_s: float = 60.0) -> AsyncIterator[LoadedBase]:
        """The base of this catalogue entry, which stays in memory as long as the block lasts.

        Raises `EngineLoadingError` when it is not there within `wait_s`, `BaseUnloadableError` when this machine
        cannot load it or could not a moment ago, and what the object store raises when it is away.
        """
        # From now on, not from when it is loaded: between the two another base could take its room.
        digest = base["digest"]
        self._num_uses[digest] += 1
        try:
            yield await self._get(base, wait_s)
        finally:
            self._num_uses[digest] -= 1

    def drop_adapters(self, names: Collection[str]) -> None:
        """Forget these adapters, whichever base has them."""
        for base in self._loaded.values():
            for name in set(names).intersection(base.engine.adapters):
                base.engine.drop_adapter(name)

    async def _get(self, base: Doc, wait_s: float) -> LoadedBase:
        found = self._touch(base["digest"])
        if found is not None:
            return found
        self._check_rest(base)
        task = asyncio.create_task(self._load(base))
        try:
            return await asyncio.wait_for(asyncio.shield(task), wait_s)
        except TimeoutError as error:
            task.add_done_callback(_log_failure)
            raise EngineLoadingError("The model is still being loaded; try again.") from error

    def _check_rest(self, base: Doc) -> None:
        """Those who wait while a load fails do not each try it once more."""
        if self.is_resting(base["digest"]):
            raise BaseUnloadableError(f"{base['_id']} could not be loaded here a moment ago; try again later.")

    async def close(self) -> None:
        """End all engines."""
        async with self._loading:
            for base in self._loaded.values():
                await asyncio.to_thread(base.engine.close)
            self._loaded.clear()

    def _touch(self, digest: str) -> LoadedBase | None:
        found = self._loaded.pop(digest, None)
        if found is not None:
            self._loaded[digest] = found
        return found

    async def _load(self, base: Doc) -> LoadedBase:
        async with self._loading:
            found = self._touch(base["digest"])
            if found is not None:
                return found
            self._check_rest(base)
            try:
                directory = await self._fetch(base, self._loaded)
                await self._make_room(base["_id"])
                await failpoint("inference.before_load")
                engine = await asyncio.to_thread(load_engine, directory, self._settings)
            except TransientError:
                raise
            except Exception as error:  # no memory, no disk, a driver that gave up, a bundle that is none
                logger.warning("a base model cannot be loaded here", extra={"base": base["_id"]}, exc_info=True)
                rest_s = self._rests.begin(base["digest"])
                message = f"{base['_id']} cannot be loaded here ({type(error).__name__}), for {rest_s:g} s at least."
                raise BaseUnloadableError(message) from error
            self._rests.end(base["digest"])
            self._forget_name(base["_id"])
            loaded = LoadedBase(base["_id"], base["digest"], engine)
            self._loaded[loaded.digest] = loaded
            told = {"device": engine.device, "dtype": engine.dtype, "cache_bytes": engine.cache_bytes}
            logger.info("a base model was loaded", extra={"base": loaded.name, **told})
            return loaded

    def _forget_name(self, name: str) -> None:
        """The bundle that had the name until now answers only for what was trained on it."""
        for former in [base for base in self._loaded.values() if base.name == name]:
            self._loaded[former.digest] = replace(former, name=f"{name}@{former.digest[:12]}")

    async def _make_room(self, wanted: str) -> None:
        """Forget the base used longest ago that nobody uses, and is not the default one unless that is replaced.

        Where there is room for one base only, the default one and what it was before take turns.
        """
        is_default_too = self._settings.engine_max_bases == 1 or wanted == self.default
        while len(self._loaded) >= self._settings.engine_max_bases:
            unused = [base for base in self._loaded.values() if not self._num_uses[base.digest]]
            forgettable = [base for base in unused if is_default_too or base.name != self.default]
            if not forgettable:
                raise EngineLoadingError("All base models in memory are in use; try again.")
            del self._loaded[forgettable[0].digest]
            await asyncio.to_thread(forgettable[0].engine.close)


def _log_failure(task: "asyncio.Task[LoadedBase]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a base model could not be loaded: %s", error)
