"""A trainer node over a real database and a directory of objects, with a tiny base in the catalogue."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from builders.bases import make_tiny_base, write_chat_file
from builders.jobs import ACTOR, OWNED, JobStory, make_resolved, make_spec
from luthier_common.contract import events as f
from luthier_common.journal.advance import create
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore, open_objects
from luthier_common.kit.room import is_transient
from luthier_trainer.domain import Assignment, assignment_of, claims_of
from luthier_trainer.executor import LocalExecutor
from luthier_trainer.settings import TrainerSettings
from luthier_trainer.store import Store
from luthier_trainer.supervisor import Supervisor
from luthier_trainer.workplace import Workplace

NODE = "node-1"
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""
"""A child in the middle of a step that takes longer than the time to stop."""


class World(NamedTuple):
    """What a test of the node touches."""

    db: Database
    objects: ObjectStore
    root: Path
    base_digest: str

    def settings(self, **changes: Any) -> TrainerSettings:
        values: dict[str, Any] = {
            "home": self.root / "home",
            "mongo_url": "mongodb://unused",
            "kafka_url": "unused",
            "objects_url": f"file://{self.root / 'objects'}",
            "internal_token": SecretStr(""),
            "trainer_node": NODE,
            "trainer_device": "cpu",
            "trainer_num_threads": 1,
            "renew_s": 0.3,
            "steps_every_s": 0.2,
            "lease_ttl_s": 30.0,
        }
        return TrainerSettings(**(values | changes))

    def store(self, settings: TrainerSettings | None = None) -> Store:
        """That of a new process in the home of these settings."""
        home = (settings or self.settings()).home
        return Store(self.db, NODE, Workplace(home, NODE).identity())

    async def join(self, store: Store, device: str = "cpu", num_slots: int = 1) -> None:
        """What a trainer of this store does first."""
        slots = [{"index": index, "gpu": None, "holder": None} for index in range(num_slots)]
        assert await store.join(device, slots) is None

    def supervisor(self, **changes: Any) -> Supervisor:
        settings = self.settings(**changes)
        workplace = Workplace(settings.home, NODE)
        return Supervisor(self.store(settings), self.objects, workplace, LocalExecutor(), settings)

    async def add_file(self, file_id: str, path: Path) -> None:
        content = path.read_bytes()
        key = f"org-default/proj-default/files/{file_id}"
        await self.objects.put(key, content)
        fact = f.FileUploaded(
            filename=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), purpose="fine-tune",
            object_key=key,
        )  # fmt: skip
        await create(self.db, fact, file_id, {**OWNED, **fact.model_dump(mode="json")}, actor=ACTOR)

    async def job(self, **asked: Any) -> JobStory:
        """A job that waits for slots."""
        spec = make_spec(**({"validation_file": "file-validation"} | asked))
        story = await JobStory.created(self.db, spec=spec)
        await story.tell(f.DataAccepted(num_examples=18, num_tokens=900), op_id="accept")
        return story

    async def place(self, story: JobStory, attempt: int = 1, *, slot: int = 0, **resolved: Any) -> None:
        """What the scheduler does: claim, then state."""
        await self.claim(story.id, attempt, slot)
        done = await story.tell(
            f.JobPlaced(
                attempt=attempt,
                members=(f.Member(node=NODE, slots=(slot,)),),
                resolved=make_resolved(**resolved),
                base_digest=self.base_digest,
            )
        )
        assert done.applied, done.outcome

    async def placed_job(self, store: Store | None = None, **asked: Any) -> JobStory:
        """A job on the first slot of this node, which has joined and renewed."""
        store = store or self.store()
        await self.join(store)
        await store.renew()
        story = await self.job(**asked)
        await self.place(story)
        return story

    async def run_of(self, story: JobStory) -> Assignment:
        """The run of this job, as its node sees it."""
        node = await self.db["nodes"].find_one({"_id": NODE})
        assert node is not None
        [claim] = [claim for claim in claims_of(node["slots"]) if claim.job_id == story.id]
        return assignment_of(claim, await story.doc())

    async def claim(self, job_id: str, attempt: int, slot: int = 0, token: str = "c") -> None:
        holder = {"job": job_id, "attempt": attempt, "claim": token, "claimed_at": "$$NOW"}
        is_meant = {"$eq": ["$$slot.index", slot]}
        held = {"$cond": [is_meant, {"$mergeObjects": ["$$slot", {"holder": holder}]}, "$$slot"]}
        taken = await self.db["nodes"].update_one(
            {"_id": NODE, "phase": "live", "slots": {"$elemMatch": {"index": slot, "holder": None}}},
            [{"$set": {"slots": {"$map": {"input": "$slots", "as": "slot", "in": held}}}}],
        )
        assert taken.matched_count == 1

    async def holder(self) -> dict[str, Any] | None:
        return (await self.holders())[0]

    async def holders(self) -> dict[int, dict[str, Any] | None]:
        """Who holds each slot that the node lists."""
        node = await self.db["nodes"].find_one({"_id": NODE})
        assert node is not None
        return {slot["index"]: slot["holder"] for slot in node["slots"]}

    async def facts(self, job_id: str) -> list[dict[str, Any]]:
        doc = await self.db["jobs"].find_one({"_id": job_id})
        assert doc is not None
        return list(doc["outbox"])

    async def add_base(self) -> None:
        """Put the tiny base that lies in `root/base` into store and catalogue."""
        base, key = self.root / "base", f"bases/{self.base_digest}/"
        for path in base.iterdir():
            await self.objects.upload(path, key + path.name)
        manifest = (base / "bundle.json").read_bytes()
        own = {"name": "bundle.json", "bytes": len(manifest), "sha256": hashlib.sha256(manifest).hexdigest()}
        entry = {
            "_id": "tiny",
            "name": "tiny",
            "digest": self.base_digest,
            "key": key,
            "files": [*json.loads(manifest)["files"], own],
            "aliases": [],
            "context_length": 256,
        }
        await self.db["bases"].insert_one(entry)


@asynccontextmanager
async def world_at(db: Database, root: Path) -> AsyncIterator[World]:
    """A tiny base in the catalogue; a short, a long and a validation file."""
    base = make_tiny_base(root / "base", name="tiny")
    digest = json.loads((base / "bundle.json").read_bytes())["digest"]
    (root / "objects").mkdir()
    async with open_objects(f"file://{root / 'objects'}") as objects:
        made = World(db, objects, root, digest)
        await made.add_base()
        await made.add_file("file-training", write_chat_file(root / "train.jsonl", 18))
        await made.add_file("file-long", write_chat_file(root / "long.jsonl", 120))
        await made.add_file("file-validation", write_chat_file(root / "valid.jsonl", 4, start=1000))
        yield made


@asynccontextmanager
async def working(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    """The node's loops, as the room runs them: they wait out a database that does not answer."""

    async def loop() -> None:
        while True:
            try:
                await supervisor.renew()
                await supervisor.look()
            except Exception as error:
                if not is_transient(error):
                    raise
            await asyncio.sleep(0.1)

    await supervisor.renew()
    task = asyncio.create_task(loop())
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.wait({task})
        await supervisor.stop()
    assert task.cancelled(), task.exception()
