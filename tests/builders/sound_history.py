"""A job that succeeded at its second attempt, told fact by fact, with its objects, slots and model."""

import hashlib
import json

from builders.jobs import ACTOR, OWNED, JobStory, make_resolved, make_step
from builders.topic_records import Told
from luthier_common.contract import events as f
from luthier_common.contract.ids import model_id_of
from luthier_common.contract.topics import COLLECTIONS, Kind
from luthier_common.journal.advance import advance, create
from luthier_common.journal.rows import EVENTS, event_row
from luthier_common.journal.unsent import envelope_of
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore

NODE = "node-1"


async def succeeded(db: Database, objects: ObjectStore) -> JobStory:
    story = await JobStory.created(db)
    await story.accepted()
    for attempt in (1, 2):
        member = f.Member(node=NODE, slots=(0,))
        placed = f.JobPlaced(attempt=attempt, members=(member,), resolved=make_resolved(), base_digest="0" * 64)
        assert (await story.tell(placed)).applied
        await story.started(attempt)
        await story.tell(make_step(attempt), attempt=attempt)
        blob = await _blob(db, objects, f"org-default/proj-default/jobs/{story.id}/a{attempt}/step-{attempt}/", story)
        await story.tell(f.CheckpointSaved(step=attempt, attempt=attempt, blob=blob), attempt=attempt)
        await book(db, story.id, attempt)
        if attempt == 1:
            await story.tell(f.RunLost(reason="lease"), attempt=1, op_id="1/lost")
    artifact = await _blob(db, objects, f"org-default/proj-default/jobs/{story.id}/a2/artifact/", story)
    finished = f.RunFinished(step=6, artifact=artifact, trained_tokens=9, train_loss=0.5)
    await story.tell(finished, attempt=2, op_id="2/RunFinished")
    model_id = model_id_of(story.id, 1)
    blob = await _blob(db, objects, f"org-default/proj-default/models/{model_id}/", story, f"model/{model_id}")
    staged = f.ModelStaged(name="ft:tiny", job_id=story.id, base="tiny", blob=blob)
    fields = {**OWNED, "name": "ft:tiny", "job": story.id, "blob": blob.model_dump(mode="json")}
    await create(db, staged, model_id, fields, actor=ACTOR)
    named = {"model_id": model_id, "model_name": "ft:tiny"}
    await story.tell(f.ArtifactStaged(blob=blob, **named), op_id="staged")
    await story.tell(f.ServingSkipped(reason="test"), op_id="skipped")
    assert (await story.tell(f.ModelRegistered(**named), op_id="registered")).applied
    published = f.ModelPublished(name="ft:tiny", job_id=story.id)
    await advance(db, Kind.MODEL, model_id, published, actor=ACTOR, op_id="published")
    return story


async def uploaded(db: Database, objects: ObjectStore) -> str:
    """The key of a file's bytes."""
    content, file_id = b'{"prompt": "a", "completion": "b"}\n', "file-sound"
    key, digest = f"{OWNED['org']}/{OWNED['project']}/files/{file_id}", hashlib.sha256(content).hexdigest()
    await objects.put(key, content)
    fact = f.FileUploaded(filename="rows.jsonl", bytes=len(content), sha256=digest, purpose="fine-tune", object_key=key)
    await create(db, fact, file_id, {**OWNED, **fact.model_dump(), "verdict": None}, actor=ACTOR)
    await ledger.record(
        db, key, sha256=digest, num_bytes=len(content), org=OWNED["org"], project=OWNED["project"],
        reference=f"file/{file_id}",
    )  # fmt: skip
    return key


async def _blob(db: Database, objects: ObjectStore, key: str, story: JobStory, reference: str | None = None) -> f.Blob:
    weights = b"weights of " + key.encode()
    digest = hashlib.sha256(weights).hexdigest()
    manifest = json.dumps({"files": [{"name": "w.safetensors", "bytes": len(weights), "sha256": digest}]}).encode()
    await objects.put(key + "w.safetensors", weights)
    await objects.put(key + "manifest.json", manifest)
    blob = f.Blob(key=key, manifest_sha256=hashlib.sha256(manifest).hexdigest(), bytes=len(weights))
    await ledger.record(
        db, key, sha256=blob.manifest_sha256, num_bytes=blob.bytes, org=OWNED["org"], project=OWNED["project"],
        reference=reference or f"job/{story.id}",
    )  # fmt: skip
    return blob


async def book(db: Database, job_id: str, attempt: int, slot: int = 0) -> None:
    row = {"job": job_id, "attempt": attempt, "node": NODE, "slots": [slot]}
    times = {"from": "$$NOW", "to": "$$NOW"}
    await db["usage"].update_one({"_id": f"{job_id}/a{attempt}/{NODE}"}, [{"$set": row | times}], upsert=True)


async def hold(db: Database, job_id: str, attempt: int, slot: int = 0) -> None:
    holder = {"job": job_id, "attempt": attempt}
    await db["nodes"].update_one({"_id": NODE}, {"$set": {f"slots.{slot}.holder": holder}})


async def project(db: Database) -> list[Told]:
    """What relay, broker and projector do together."""
    records = []
    for kind, name in COLLECTIONS.items():
        async for thing in db[name].find({}):
            for entry in thing["outbox"]:
                envelope = envelope_of(kind, thing, entry)
                records.append(Told(envelope.id, envelope.value(), "here"))
                await db[EVENTS].insert_one(event_row(envelope, json.loads(envelope.value()), 0, len(records)))
        await db[name].update_many({}, {"$set": {"outbox": [], "pend": False, "unsent": False}})
    return records
