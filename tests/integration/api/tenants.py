"""Tenants of a running api: an organisation with a project and a key, and a thing of every kind that is theirs."""

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2

from builders.engines import Engine, joined
from builders.jobs import ACTOR, JobStory, make_blob, make_step
from builders.waiting import until
from integration.api.conftest import TINY, Api
from luthier_common.contract import events as f
from luthier_common.contract.ids import model_id_of
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit import ledger
from luthier_common.kit.objects import open_objects

SECRET = "a word of mine"
LINE = json.dumps({"messages": [{"role": "user", "content": SECRET}, {"role": "assistant", "content": "another"}]})
WEIGHTS = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights", "optimizer.pt": b"state"}
Things = dict[str, str]
"""What they are called, by what they are."""


@dataclass(frozen=True)
class Tenant:
    """Whose things they are, or who asks for them; `end_user` is on whose behalf."""

    api: Api
    org: str
    project: str
    key: str
    end_user: str | None = None
    things: Things = field(default_factory=dict)

    def http(self) -> httpx2.AsyncClient:
        client = self.api.http(self.key)
        if self.end_user is not None:
            client.headers["x-on-behalf-of"] = self.end_user
        return client


async def neighbour(api: Api, org: str | None = None) -> Tenant:
    """A new project, in a new organisation unless one is given, with a key that may do everything there."""
    org, project = org or f"org-{secrets.token_hex(12)}", f"proj-{secrets.token_hex(12)}"
    made = {"created_at": datetime.now(UTC)}
    await api.db["orgs"].update_one({"_id": org}, {"$setOnInsert": made | {"name": "walls"}}, upsert=True)
    await api.db["projects"].insert_one({"_id": project, "org": org, "name": project, "archived_at": None} | made)
    return Tenant(api, org, project, await api.new_key("admin", project=project, org=org))


async def settled(api: Api, end_user: str | None = None) -> Tenant:
    """A tenant with one thing of every kind, where it may be an end user's."""
    who = await neighbour(api)
    async with api.http(who.key) as http:
        things = await _administration(http, who.project)
    who = Tenant(api, who.org, who.project, who.key, end_user, things)
    async with who.http() as http, joined(api.db, Engine(f"engine-{who.project}"), TINY):
        things["filename"] = f"walls-{secrets.token_hex(12)}.jsonl"
        file = {"file": (things["filename"], f"{LINE}\n" * 12)}
        things["file_id"] = (await _made(http, "files", files=file, data={"purpose": "fine-tune"}))["id"]
        wanted = {"model": TINY, "training_file": things["file_id"], "suffix": "walled"}
        things["job_id"] = (await _made(http, "fine_tuning/jobs", json=wanted))["id"]
        things["model"] = await _tell_success(api, things["job_id"])
        things |= await _checkpoint(http, things["job_id"])
        things |= await _uploads(http)
        things["response_id"] = (await _made(http, "responses", json={"model": things["model"], "input": SECRET}))["id"]
    async with api.http(who.key) as http:
        borrower = await _made(http, "organization/projects", json={"name": "borrower"})
        place = f"fine_tuning/checkpoints/{things['checkpoint']}/permissions"
        lent = await _made(http, place, json={"project_ids": [borrower["id"]]})
        things["permission_id"] = lent["data"][0]["id"]
    return who


async def _made(http: httpx2.AsyncClient, path: str, **sent: Any) -> dict[str, Any]:
    answer = await http.post(f"/v1/{path}", **sent)
    assert answer.status_code == 200, (path, answer.text)
    made: dict[str, Any] = answer.json()
    return made


async def _administration(http: httpx2.AsyncClient, project: str) -> Things:
    at = f"organization/projects/{project}"
    user = await _made(http, "organization/users", json={"email": "ann@walls.example"})
    await _made(http, f"{at}/users", json={"role": "member", "user_id": user["id"]})
    account = await _made(http, f"{at}/service_accounts", json={"name": "robot"})
    key = await _made(http, f"{at}/api_keys", json={"name": "project's", "scopes": ["files:read"]})
    admin_key = await _made(http, "organization/admin_api_keys", json={"name": "organisation's"})
    return {
        "project_id": project,
        "user_id": user["id"],
        "account_id": account["id"],
        "key_id": key["id"],
        "admin_key_id": admin_key["id"],
    }


async def _uploads(http: httpx2.AsyncClient) -> Things:
    """Two uploads, one of them with all of its bytes."""
    wanted = {"bytes": 4, "filename": "u.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
    whole, other = [(await _made(http, "uploads", json=wanted))["id"] for _ in range(2)]
    part = await _made(http, f"uploads/{whole}/parts", files={"data": ("part", b"abcd")})
    return {"upload_id": whole, "part_id": part["id"], "other_upload_id": other}


async def _checkpoint(http: httpx2.AsyncClient, job_id: str) -> Things:
    """What the job's checkpoint is called as a model, and the id of a file with its weights."""

    async def listed() -> dict[str, Any] | None:
        found = (await http.get(f"/v1/fine_tuning/jobs/{job_id}/checkpoints")).json()["data"]
        return found[0] if found else None

    checkpoint: dict[str, Any] = await until(listed, what="the checkpoint is listed")
    return {"checkpoint": checkpoint["fine_tuned_model_checkpoint"], "weights_id": checkpoint["result_files"][0]}


async def _tell_success(api: Api, job_id: str) -> str:
    """The job's story to its end, with a checkpoint at step 3; the name of the model that it published."""
    story, model_id = JobStory(api.db, job_id), model_id_of(job_id, 1)
    job = await (await story.in_training()).doc()
    owned = {name: job[name] for name in ("org", "project", "owner", "end_user")}
    name = str(job["model_name"])
    saved = await store_weights(api, owned, f"{job['org']}/{job['project']}/jobs/{job_id}/a1/step-3/", f"job/{job_id}")
    kept = await store_weights(api, owned, f"{job['org']}/{job['project']}/models/{model_id}/", f"model/{model_id}")
    await story.tell(make_step(3), attempt=1)
    await story.tell(f.CheckpointSaved(step=3, attempt=1, blob=saved), attempt=1)
    finished = f.RunFinished(step=6, artifact=make_blob(), trained_tokens=300, train_loss=0.5)
    await story.tell(finished, attempt=1, op_id="1/RunFinished")
    staged = f.ModelStaged(name=name, job_id=job_id, base=TINY, blob=kept)
    fields = {
        "name": name,
        "job": job_id,
        "base": TINY,
        "base_digest": "0" * 64,
        "blob": kept.model_dump(mode="json"),
        **owned,
    }
    await create(api.db, staged, model_id, fields, actor=ACTOR)
    named = {"model_id": model_id, "model_name": name}
    await story.tell(f.ArtifactStaged(blob=kept, **named), op_id="staged")
    await story.tell(f.ServingSkipped(reason="test"), op_id="skipped")
    assert (await story.tell(f.ModelRegistered(**named), op_id="registered")).applied
    await advance(api.db, Kind.MODEL, model_id, f.ModelPublished(name=name, job_id=job_id), actor=ACTOR)
    return name


async def store_weights(api: Api, owned: dict[str, Any], key: str, reference: str) -> f.Blob:
    """Weights with their manifest, where a trainer or the registry leaves them."""
    files = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in WEIGHTS.items()
    ]
    manifest = json.dumps({"files": files}).encode()
    sha256 = hashlib.sha256(manifest).hexdigest()
    async with open_objects(f"file://{api.home}/objects") as objects:
        for name, content in (WEIGHTS | {"manifest.json": manifest}).items():
            await objects.put(key + name, content)
    place = {"org": owned["org"], "project": owned["project"], "reference": reference}
    await ledger.record(api.db, key, sha256=sha256, num_bytes=20, **place)
    return f.Blob(key=key, manifest_sha256=sha256, bytes=20)
