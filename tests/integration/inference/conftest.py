"""A running inference node with a tiny base in its catalogue, and finished models that wait to be tried."""

import asyncio
import hashlib
import json
import os
import signal
import sys
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from builders.bases import CONTEXT, chat_row, make_tiny_base
from builders.inference_room import InferenceRoom, make_inference_room
from builders.jobs import JobStory, make_resolved, make_spec
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.kit.bases import sha256_of
from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, open_mongo
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_registry.store import Store
from luthier_stack.logs import tail
from luthier_text import TextBundle

TOKEN = "a-token-for-tests"
NODE = "inference-test"
ROWS = [chat_row(f"Where is parcel {number}?", "It arrives on Monday.") for number in range(3)]


@dataclass
class Artifact:
    """A finished model in the object store."""

    blob: f.Blob
    directory: Path

    @property
    def reference(self) -> dict[str, str]:
        return {"model_id": "ftmodel-test", "key": self.blob.key, "manifest_sha256": self.blob.manifest_sha256}


@dataclass
class RunningNode:
    """The service as a process of its own."""

    process: asyncio.subprocess.Process
    client: httpx2.AsyncClient
    log: Path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the node and the object store keep things."""
    directory = tmp_path_factory.mktemp("inference")
    (directory / "objects").mkdir()
    return directory


@pytest.fixture(scope="module")
async def db(mongo_url: str) -> AsyncIterator[Database]:
    """A database that all tests of a file share, as they share the node: starting one imports torch."""
    async with open_mongo(mongo_url, f"test_{uuid.uuid4().hex[:12]}") as database:
        await migrate(database)
        yield database
        await database.client.drop_database(database.name)


@pytest.fixture(scope="module")
async def objects(home: Path) -> AsyncIterator[ObjectStore]:
    async with open_objects((home / "objects").as_uri()) as store:
        yield store


@pytest.fixture(scope="module")
async def catalogue(db: Database, objects: ObjectStore, tiny_base: Path) -> str:
    """The digest of the base `tiny`."""
    bundle = json.loads((tiny_base / "bundle.json").read_bytes())
    key = f"bases/{bundle['digest']}/"
    for file in bundle["files"]:
        await objects.upload(tiny_base / file["name"], key + file["name"])
    entry = {"_id": "tiny", "digest": bundle["digest"], "key": key, "files": bundle["files"], "aliases": ["org/Tiny"]}
    await db["bases"].insert_one({**entry, "context_length": bundle["context_length"]})
    return str(bundle["digest"])


@pytest.fixture
def make_artifact(objects: ObjectStore, tiny_base: Path, tmp_path: Path) -> Callable[..., Awaitable[Artifact]]:
    """Puts a LoRA adapter with golden rows into the store; `spoil` changes the golden rows before.

    `mask_mode` is that of a trainer of another version; `weight` is what all weights of the adapter are.
    """

    async def make(
        spoil: Callable[[list[dict[str, Any]]], None] | None = None,
        seed: int = 1,
        mask_mode: str | None = None,
        weight: float | None = None,
    ) -> Artifact:
        directory = tmp_path / f"artifact-{seed}"
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
        if weight is not None:
            for name, parameter in model.named_parameters():
                parameter.data = torch.full_like(parameter, weight) if "lora_" in name else parameter.data
        model.save_pretrained(str(directory))
        golden = TextBundle.load(tiny_base).golden(ROWS)
        if spoil:
            spoil(golden)
        (directory / "golden.json").write_text(json.dumps(golden))
        if mask_mode is not None:
            (directory / "training.json").write_text(json.dumps({"text": {"mask_mode": mask_mode}}))
        key = f"org-default/proj-default/models/ftmodel-{seed}/"
        files = []
        for path in sorted(directory.iterdir()):
            stored = await objects.upload(path, key + path.name)
            files.append({"name": path.name, "bytes": stored.bytes, "sha256": stored.sha256})
        manifest = json.dumps({"step": 6, "attempt": 1, "files": files}).encode()
        await objects.put(key + "manifest.json", manifest)
        return Artifact(f.Blob(key=key, manifest_sha256=hashlib.sha256(manifest).hexdigest(), bytes=1), directory)

    return make


@pytest.fixture
def stage(db: Database, catalogue: str) -> Callable[..., Awaitable[JobStory]]:
    """A job whose artifact was staged and waits for an engine."""

    async def run(blob: f.Blob, model: str = "tiny", digest: str = catalogue) -> JobStory:
        story = await (await JobStory.created(db, spec=make_spec(model=model))).accepted()
        member = f.Member(node="node-1", slots=(0,))
        placed = f.JobPlaced(attempt=1, members=(member,), resolved=make_resolved(), base_digest=digest)
        assert (await story.tell(placed)).applied
        await story.started()
        finished = f.RunFinished(step=6, artifact=blob, trained_tokens=10, train_loss=1.0)
        assert (await story.tell(finished, attempt=1)).applied
        staged = f.ArtifactStaged(model_id="ftmodel-test", model_name="ft:tiny:default::1", blob=blob)
        assert (await story.tell(staged, op_id="staged")).applied
        return story

    return run


@pytest.fixture
async def make_room(db: Database, objects: ObjectStore, tmp_path: Path) -> AsyncIterator[Callable[..., InferenceRoom]]:
    rooms = []

    def make(**changes: Any) -> InferenceRoom:
        rooms.append(room := make_inference_room(db, objects, tmp_path, **changes))
        return room

    yield make
    for room in rooms:
        await room.pool.close()


@pytest.fixture
async def publish(db: Database, objects: ObjectStore) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Puts a bundle into the catalogue, as the registry does; its digest."""
    names = set()

    async def put(name: str, directory: Path, aliases: Sequence[str] = ()) -> str:
        paths = [path for path in sorted(directory.iterdir()) if path.name != "bundle.json"]
        files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        for path in paths:
            await objects.upload(path, f"bases/{digest}/{path.name}")
        entry = {"_id": name, "digest": digest, "key": f"bases/{digest}/", "files": files, "aliases": list(aliases)}
        await Store(db).write_base(entry | {"context_length": CONTEXT, "revision": None})
        names.add(name)
        return digest

    yield put
    await db["bases"].delete_many({"_id": {"$in": list(names)}})


@pytest.fixture(scope="module")
async def node(db: Database, catalogue: str, mongo_url: str, kafka_url: str, home: Path) -> AsyncIterator[RunningNode]:
    """The node, once its default base answers."""
    assert catalogue
    env = {
        **os.environ,
        "LUTHIER_HOME": str(home),
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": db.name,
        "LUTHIER_KAFKA_URL": kafka_url,
        "LUTHIER_OBJECTS_URL": (home / "objects").as_uri(),
        "LUTHIER_DEFAULT_BASE": "tiny",
        "LUTHIER_INTERNAL_TOKEN": TOKEN,
        "LUTHIER_INFERENCE_NODE": NODE,
        "LUTHIER_TICK_S": "0.2",
        "LUTHIER_RENEW_S": "0.2",
    }
    log = home / "inference.log"
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "luthier_inference", env=env, stdout=stream, stderr=stream
        )

    async def ready() -> dict[str, Any] | None:
        assert process.returncode is None, log.read_text()
        return await db["nodes"].find_one({"_id": NODE, "phase": "live", "bases": "tiny"})

    try:
        try:
            doc = await until(ready, within_s=120, what="the node announces its base")
        except AssertionError as error:
            error.add_note(tail(log))
            raise
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(base_url=doc["address"], headers=headers, timeout=30) as client:
            yield RunningNode(process, client, log)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)
