"""Callers that hang up leave room for others."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from builders.waiting import until
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore
from luthier_inference.artifacts import ArtifactCache
from luthier_inference.bootstrap import serve
from luthier_inference.controllers import build_app
from luthier_inference.engine.generation import Engine
from luthier_inference.engines import EnginePool
from luthier_inference.serving import Serving
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore

BODY: dict[str, Any] = {
    "base": "tiny",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "temperature": 0,
    "frequency_penalty": -2,
    "max_tokens": 200,
}


class Here(NamedTuple):
    """The room's HTTP side in this process, and its engine."""

    client: httpx2.AsyncClient
    engine: Engine
    serving: Serving


@pytest.fixture
async def here(db: Database, catalogue: str, objects: ObjectStore, tiny_base: Path) -> AsyncIterator[Here]:
    assert catalogue

    async def fetch(_base: object, _loaded: object) -> Path:
        return tiny_base

    settings = InferenceSettings(
        mongo_url="mongodb://unused", kafka_url="unused", objects_url="file:///unused", default_base="tiny"
    )
    store, pool = InferenceStore(db, "inference-here"), EnginePool(fetch, settings, SystemClock())
    serving = Serving(store, pool, ArtifactCache(objects, tiny_base.parent / "adapters", 4), settings)
    async with serve(build_app(serving, "token"), "127.0.0.1", 0) as port:
        url, headers = f"http://127.0.0.1:{port}/internal/chat/completions", {"Authorization": "Bearer token"}
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as client:
            async with serving.base("tiny") as base:
                engine = base.engine
            yield Here(client, engine, serving)
    await pool.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_that_nobody_waits_for_are_not_made(here: Here, stream: bool) -> None:
    tasks = [asyncio.create_task(here.client.post("", json={**BODY, "stream": stream})) for _ in range(70)]

    async def all_came_in() -> bool:
        return here.engine.num_pending > 60

    async def none_is_left() -> bool:
        return here.engine.num_pending == 0

    await until(all_came_in)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(none_is_left, within_s=2)
    await asyncio.wait_for(here.serving.idle.wait(), 2)
    assert (await here.client.post("", json={**BODY, "max_tokens": 3})).status_code == 200
