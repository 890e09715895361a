"""Answers: finds the base, brings its adapter, and lets the engine speak."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from luthier_common.kit.bases import BaseMissingError, version_of
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_inference.artifacts import ArtifactCache
from luthier_inference.chat import AdapterRef, ChatBody
from luthier_inference.domain import Delta, EngineBusyError, Generation, Sampling, UnknownAdapterError
from luthier_inference.engines import EnginePool, LoadedBase
from luthier_inference.prompts import PromptReader
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore, names_of


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

    async def list_served(self) -> list[Doc]:
        """The catalogue entries that this node loads when asked."""
        named = {name.strip() for name in self._settings.inference_bases.split(",")}
        bases = [base for base in await self._store.list_bases() if "*" in named or named.intersection(names_of(base))]
        default = [base for base in bases if self._is_default(base)]
        # The default base never makes room for another one.
        return default if default and self._settings.engine_max_bases == 1 else bases

    async def list_ready(self) -> list[Doc]:
        """The entries to announce: loaded, or loaded on demand. The default base counts only when it is loaded."""
        return [base for base in await self.list_served() if not self._is_default(base) or self._pool.has(base["_id"])]

    def is_resting(self, base: Doc) -> bool:
        """Whether this machine could not load the base, and does not try it again yet."""
        return self._pool.is_resting(base["digest"])

    def _is_default(self, base: Doc) -> bool:
        return self._settings.default_base in names_of(base)

    async def load_default(self) -> bool:
        """Load the default base as the catalogue has it now; False when it was loaded already, or is not there."""
        default = next((base for base in await self.list_served() if self._is_default(base)), None)
        if default is None or self._pool.is_loaded(default["digest"]):
            return False
        await self._pool.get(default, wait_s=600)
        return True

    async def base(self, name: str, digest: str | None = None) -> LoadedBase:
        """The base with this name or alias, loaded; as it was with a digest, if one is given.

        Raises `BaseMissingError`, and what `EnginePool.get` raises.
        """
        found = next((base for base in await self.list_served() if name in names_of(base)), None)
        version = found and version_of(found, digest)
        if version is None:
            raise BaseMissingError(f"This node serves no base model {name!r}{' of this digest' if found else ''}.")
        return await self._pool.get(version)

    async def prepare(self, body: ChatBody) -> Prepared:
        """Make ids of messages, bring base and adapter. Raises `InvalidRequestError` and what the engine raises."""
        base = await self.base(body.base, body.adapter.base_digest if body.adapter else None)
        if body.adapter is not None:
            await self.load_adapter(base, body.adapter)
        ids = await self._prompts.read(base.engine.text.prompt_ids, body.messages)
        name = adapter_name(body.adapter)
        return Prepared(base, Generation(ids, name, body.sampling), body.adapter)

    async def load_adapter(self, base: LoadedBase, adapter: AdapterRef) -> None:
        """Bring an adapter from the object store into the engine, unless it is there."""
        if adapter_name(adapter) in base.engine.adapters:
            return
        directory = await self._artifacts.fetch(adapter.key, adapter.manifest_sha256)
        await base.engine.load_adapter(adapter_name(adapter) or "", directory)

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


def adapter_name(adapter: AdapterRef | None) -> str | None:
    """The name in the engine: two versions of a model never share one."""
    return None if adapter is None else f"{adapter.model_id}@{adapter.manifest_sha256}"


def greedy(max_tokens: int) -> Sampling:
    """The likeliest answer of at most so many tokens."""
    return Sampling(max_tokens=max_tokens, temperature=0.0)
