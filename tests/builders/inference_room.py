"""The parts of an inference room that load bases, answer and try models, in this process."""

from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_inference.artifacts import ArtifactCache, BaseCache
from luthier_inference.chat import parse_chat
from luthier_inference.engines import EnginePool
from luthier_inference.node import Node
from luthier_inference.serving import Serving
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore
from luthier_inference.verification import Verifier

BODY: Doc = {"messages": [{"role": "user", "content": "Where is my parcel?"}], "temperature": 0, "max_tokens": 8}


class InferenceRoom(NamedTuple):
    """What `bootstrap` puts together, without its servers and loops."""

    serving: Serving
    pool: EnginePool
    verifier: Verifier
    node: Node
    artifacts: ArtifactCache

    async def answer(self, base: str, adapter: Doc | None = None) -> tuple[str, str]:
        """The digest of the bundle that answered, and what it said."""
        body = parse_chat({**BODY, "base": base, "adapter": adapter})
        async with self.serving.prepare(body) as prepared, aclosing(self.serving.answer(prepared)) as deltas:
            return prepared.base.digest, "".join([delta.text async for delta in deltas])

    async def ready(self) -> list[str]:
        return [base["_id"] for base in await self.serving.list_ready()]


def make_inference_room(db: Database, objects: ObjectStore, home: Path, **changes: Any) -> InferenceRoom:
    settings = InferenceSettings(
        mongo_url="mongodb://unused", kafka_url="unused", objects_url="file:///unused", **changes
    )
    store, clock = InferenceStore(db, "inference-here"), SystemClock()
    bases = BaseCache(objects, home / "bases", settings.base_cache_dirs)
    pool = EnginePool(bases.fetch, settings, clock)
    artifacts = ArtifactCache(objects, home / "adapters", 4)
    serving = Serving(store, pool, artifacts, settings)
    verifier = Verifier(store, serving, artifacts, settings, clock)
    return InferenceRoom(serving, pool, verifier, Node(store, serving, pool, "http://here", settings), artifacts)
