"""Registries over a real database and a directory of objects, and jobs whose training is over."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.builders.jobs import JobStory, make_spec

from luthier_common.contract import events as f
from luthier_common.kit.failpoints import configure_failpoints
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_registry.claims import Claims
from luthier_registry.register import Registrar
from luthier_registry.settle import Settler
from luthier_registry.store import Store

METRICS = [
    {"step": 1, "train_loss": 2.5, "train_mean_token_accuracy": 0.25},
    {"step": 2, "train_loss": 2.0, "train_mean_token_accuracy": 0.5},
    {"step": 2, "full_valid_loss": 2.25, "full_valid_mean_token_accuracy": 0.375},
]
ARTIFACT = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": b"w" * 3_000_000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "text.json": b"{}",
    "golden.json": b"[]",
    "training.json": b"{}",
}


class HandClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return self.now_s


class Registry:
    """One process's worth of registry; `look` is a tick of its loops."""

    def __init__(self, db: Database, objects: ObjectStore, clock: HandClock, name: str) -> None:
        self.clock = clock
        self.store = Store(db)
        self.staging = Registrar(self.store, objects, Claims(db, name, 5.0), clock)
        self.settling = Settler(self.store, clock, 60.0)

    async def look(self) -> None:
        await self.staging.look()
        await self.settling.look()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    async with open_objects(f"file://{tmp_path}/objects") as store:
        yield store


@pytest.fixture
async def base(db: Database) -> str:
    await db["bases"].insert_one(
        {"_id": "Tiny", "digest": "0" * 64, "key": f"bases/{'0' * 64}/", "files": [], "aliases": ["tiny"],
         "context_length": 256, "revision": "a" * 64, "converter": "test/1"}
    )  # fmt: skip
    return "Tiny"


@pytest.fixture
def make_registry(db: Database, objects: ObjectStore, clock: HandClock) -> Callable[..., Registry]:
    return lambda name="registry-1": Registry(db, objects, clock, name)


@pytest.fixture
def train(db: Database, objects: ObjectStore, base: str) -> Callable[..., Any]:
    async def trained(files: dict[str, bytes] | None = None, **spec: Any) -> JobStory:
        story = await (await JobStory.created(db, spec=make_spec(**spec))).in_training()
        at = f"org-default/proj-default/jobs/{story.id}/a1/"
        files = ARTIFACT if files is None else files
        rows = [{"name": n, "bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()]
        for name, content in files.items():
            await objects.put(f"{at}artifact/{name}", content)
        manifest = json.dumps({"step": 6, "attempt": 1, "files": rows}).encode()
        await objects.put(f"{at}artifact/manifest.json", manifest)
        await objects.put(f"{at}metrics.jsonl", "".join(json.dumps(row) + "\n" for row in METRICS).encode())
        blob = f.Blob(
            key=f"{at}artifact/",
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
            bytes=sum(map(len, files.values())),
        )
        finished = f.RunFinished(
            step=6, artifact=blob, trained_tokens=600, train_loss=2.0, metrics_key=f"{at}metrics.jsonl",
            library_versions={"torch": "2.13.0"},
        )  # fmt: skip
        assert (await story.tell(finished, attempt=1, op_id="1/RunFinished")).applied
        return story

    return trained


@pytest.fixture
def faults() -> Any:
    """Sets fail points for one test."""
    yield configure_failpoints
    configure_failpoints()
