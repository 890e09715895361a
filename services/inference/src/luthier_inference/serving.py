"""Answers: finds the base, brings its adapter, and lets the engine speak."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from luthier_common.kit.bases import BaseMissingError, bases_called, version_of
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_inference.artifacts import ArtifactCache
from luthier_inference.chat import AdapterRef, ChatBody
from luthier_inference.domain import Delta, EngineBusyError, Generation, Sampling, UnknownAdapterError
from luthier_inference.engines import EnginePool, LoadedBase
from luthier_inference.prompts import PromptReader
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore


class EngineDrainingError(TransientError):
    """The node is being stopped: it ends what it has begun and begins nothing more."""

    code = "engine_draining"


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered now."""

    base: LoadedBase
    asked: Generation
    adapter: AdapterRef | None


class Serving:
    """The bases of the catalogue that this node serves, and their adapters."""

    def __init__(
        self, store: InferenceStore, pool: EnginePool, artifacts: ArtifactCache, settings: InferenceSettings
    ) -> None:
        self._store = store
        self._pool = pool
        self._artifacts = artifacts
        self._settings = settings
        self._prompts = PromptReader(settings.engine_max_waiting)
        self.is_draining = False
        self._num_answers = 0
        self.idle = asyncio.Event()
        """Set while nobody is being answered."""
        self.idle.set()

    async def list_served(self) -> list[Doc]:
        """The catalogue entries that this node loads when asked."""
        bases = await self._store.list_bases()
        named = [name.strip() for name in self._settings.inference_bases.split(",")]
        if "*" not in named:
            meant = {base["_id"] for name in named for base in bases_called(bases, name)[:1]}
            bases = [base for base in bases if base["_id"] in meant]
        default = bases_called(bases, self._settings.default_base)[:1]
        # The default base never makes room for another one.
        return default if default and self._settings.engine_max_bases == 1 else bases

    async def list_ready(self) -> list[Doc]:
        """The entries to announce: loaded, or loaded on demand unless that failed a moment ago.

        The default base counts only when it is loaded.
        """
        served = await self.list_served()
        default = bases_called(served, self._settings.default_base)[:1]
        return [
            base
            for base in served
            if self._pool.has(base["_id"]) or (base not in default and not self._pool.is_resting(base["digest"]))
        ]

    async def load_default(self) -> bool:
        """Load the default base as the catalogue has it now; False when it was loaded already, or is not there."""
        default = next(iter(bases_called(await self.list_served(), self._settings.default_base)), None)
        if default is None:
            return False
        self._pool.default = default["_id"]
        if self._pool.is_loaded(default["digest"]):
            return False
        async with self._pool.use(default, wait_s=600):
            return True

    @asynccontextmanager
    async def base(self, name: str, digest: str | None = None) -> AsyncIterator[LoadedBase]:
        """The base with this name or alias, loaded as long as the block lasts; as it was with a digest, if given.

        Raises `BaseMissingError`, and what `EnginePool.use` raises.
        """
        called = bases_called(await self.list_served(), name)
        version = next((found for base in called if (found := version_of(base, digest))), None)
        if version is None:
            raise BaseMissingError(f"This node serves no base model {name!r}{' of this digest' if called else ''}.")
        async with self._pool.use(version) as loaded:
            yield loaded

    @asynccontextmanager
    async def prepare(self, body: ChatBody) -> AsyncIterator[Prepared]:
        """Make ids of messages, bring base and adapter, which stays as long as the block lasts.

        Raises `EngineDrainingError`, `InvalidRequestError` and what the engine raises.
        """
        if self.is_draining:
            raise EngineDrainingError("This engine is being stopped; another one may answer.")
        pinned = body.adapter.base_digest if body.adapter else None
        async with self._counted(), self.base(body.base, pinned) as base:
            if body.adapter is not None:
                await self.load_adapter(base, body.adapter)
            ids = await self._prompts.read(base.engine.text.prompt_ids, body.messages)
            name = body.adapter.name if body.adapter else None
            yield Prepared(base, Generation(ids, name, body.sampling, body.project), body.adapter)

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._num_answers += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._num_answers -= 1
            if not self._num_answers:
                self.idle.set()

    async def load_adapter(self, base: LoadedBase, adapter: AdapterRef) -> None:
        """Bring an adapter from the object store into the engine, unless it is there."""
        if adapter.name in base.engine.adapters:
            return
        await base.engine.load_adapter(adapter.name, await self._artifacts.fetch(adapter))

    async def answer(self, prepared: Prepared) -> AsyncGenerator[Delta, None]:
        """The answer, piece by piece. An adapter that had to make room meanwhile is brought back once.

        Raises what the engine raises, and `EngineBusyError` when the adapter had to make room again.
        """
        is_retry = False
        while True:
            try:
                async with aclosing(prepared.base.engine.generate(prepared.asked)) as deltas:
                    async for delta in deltas:
                        await failpoint("inference.mid_answer")
                        yield delta
                return
            except UnknownAdapterError as error:
                if prepared.adapter is None:
                    raise
                if is_retry:
                    raise EngineBusyError("Too many models are in use; try again later.") from error
                is_retry = True
                await self.load_adapter(prepared.base, prepared.adapter)

    async def drop_deleted(self) -> None:
        """What is kept of models and checkpoints that were deleted goes, from disk and from memory."""
        names = {*self._artifacts.names, *self._pool.adapters}
        model_ids = {name: name.partition("@")[0] for name in names}
        deleted = await self._store.list_deleted(set(model_ids.values()))
        gone = {name for name, model_id in model_ids.items() if model_id in deleted}
        self._pool.drop_adapters(gone)
        for name in gone:
            await self._artifacts.drop(name)


def greedy(max_tokens: int) -> Sampling:
    """The likeliest answer of at most so many tokens."""
    return Sampling(max_tokens=max_tokens, temperature=0.0)
