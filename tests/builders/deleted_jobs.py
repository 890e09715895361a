"""Jobs over a running API, told to their end, and deleted as users do it."""

import hashlib
import json
from typing import Any

from openai.types import FileObject

from builders.jobs import ACTOR, OWNED, JobStory, make_blob, make_step
from integration.api.conftest import TINY, Api
from luthier_common.contract import events as f
from luthier_common.contract.ids import model_id_of, result_file_id_of
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit import ledger
from luthier_common.kit.objects import ObjectStore

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
WEIGHTS = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights"}


async def upload(api: Api, name: str = "deletion.jsonl") -> FileObject:
    return await api.sdk().files.create(file=(name, LINE * 20), purpose="fine-tune")


async def new_job(api: Api, file_id: str | None = None, **more: Any) -> JobStory:
    file_id = file_id or (await upload(api)).id
    job = await api.sdk().fine_tuning.jobs.create(model=TINY, training_file=file_id, **more)
    return JobStory(api.db, job.id)


async def ended_job(api: Api, **more: Any) -> JobStory:
    story = await new_job(api, **more)
    await api.sdk().fine_tuning.jobs.cancel(story.id)
    return story


async def delete(api: Api, job_id: str, **query: Any) -> Any:
    """As a script does it that uses the openai package."""
    return await api.sdk().delete(f"/fine_tuning/jobs/{job_id}", options={"params": query}, cast_to=object)


async def put(api: Api, objects: ObjectStore, key: str, content: bytes, *references: str) -> None:
    await objects.put(key, content)
    folder = key.rpartition("/")[0] + "/" if references and references[0].startswith(("job/", "model/")) else key
    for reference in references:
        await ledger.record(
            api.db, folder, sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content), org=OWNED["org"],
            project=OWNED["project"], reference=reference,
        )  # fmt: skip


async def make_file(
    api: Api, objects: ObjectStore, file_id: str, key: str, content: bytes, job_id: str
) -> None:  # fmt: skip
    fact = f.FileGenerated(
        filename=key.rpartition("/")[2], bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
        purpose="fine-tune-results", object_key=key, job_id=job_id,
    )  # fmt: skip
    await put(api, objects, key, content, f"file/{file_id}")
    await create(api.db, fact, file_id, {**OWNED, **fact.model_dump(mode="json")}, actor=ACTOR)


async def succeeded_job(api: Api, objects: ObjectStore, file_id: str) -> tuple[JobStory, str, str]:
    """A job as its rooms leave it: a checkpoint, a file with metrics, and a model. With the prefixes of both."""
    story = await new_job(api, file_id, suffix="kept")
    await story.in_training()
    await story.tell(make_step(3), attempt=1)
    saved, model_id = f"org-default/proj-default/jobs/{story.id}/a1/step-3/", model_id_of(story.id, 1)
    permanent = f"org-default/proj-default/models/{model_id}/"
    described = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in WEIGHTS.items()
    ]
    manifest = json.dumps({"files": described}).encode()
    sha256 = hashlib.sha256(manifest).hexdigest()
    for name, content in (WEIGHTS | {"manifest.json": manifest}).items():
        await put(api, objects, saved + name, content, f"job/{story.id}")
        await put(api, objects, permanent + name, content, f"model/{model_id}")
    blob = f.Blob(key=saved, manifest_sha256=sha256, bytes=10)
    await story.tell(f.CheckpointSaved(step=3, attempt=1, blob=blob), attempt=1)
    finished = f.RunFinished(step=6, artifact=make_blob(), trained_tokens=300, train_loss=0.5)
    await story.tell(finished, attempt=1, op_id="1/RunFinished")
    metrics, name = result_file_id_of(story.id, 1), f"ft:{TINY}:default:kept:{story.id[-12:]}"
    await make_file(api, objects, metrics, f"org-default/proj-default/files/{metrics}", b"step\n1\n", story.id)
    await make_file(api, objects, f"{metrics}w0", permanent + "adapter_model.safetensors", b"weights", story.id)
    blob = f.Blob(key=permanent, manifest_sha256=sha256, bytes=10)
    fields = {
        **OWNED,
        "name": name,
        "job": story.id,
        "base": TINY,
        "base_digest": "0" * 64,
        "blob": blob.model_dump(mode="json"),
    }
    fields["weights_files"] = [{"id": f"{metrics}w0", "name": "adapter_model.safetensors"}]
    staged = f.ModelStaged(name=name, job_id=story.id, base=TINY, blob=blob)
    await create(api.db, staged, model_id, fields, actor=ACTOR)
    stated = f.ArtifactStaged(model_id=model_id, model_name=name, blob=blob, result_file_id=metrics)
    await story.tell(stated, op_id="staged")
    await story.tell(f.ServingSkipped(reason="test"), op_id="skipped")
    registered = f.ModelRegistered(model_id=model_id, model_name=name, weights_files=(f"{metrics}w0",))
    await story.tell(registered, op_id="registered")
    await advance(api.db, Kind.MODEL, model_id, f.ModelPublished(name=name, job_id=story.id), actor=ACTOR)
    return story, saved, permanent
