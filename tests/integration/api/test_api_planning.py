"""Validate and capacity: what a create would do, and what there is to do it."""

import asyncio
import json
from typing import Any

import httpx2

from builders.jobs import JobStory
from builders.stories import ACTOR, queue, read_file
from integration.api.conftest import TINY, Api
from luthier_common.contract import events as f
from luthier_common.contract.ids import canonical_id
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit.objects import open_objects

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
SCOPES = ("files:read", "files:write", "fine-tuning:read", "fine-tuning:write")


async def upload(http: httpx2.AsyncClient, name: str = "plan.jsonl") -> str:
    form = {"purpose": (None, b"fine-tune"), "file": (name, LINE * 20)}
    return str((await http.post("/v1/files", files=form)).json()["id"])


async def validate(http: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/v1/fine_tuning/validate", json=body)
    assert answer.status_code == 200, answer.text
    assert ("retry-after" in answer.headers) == (answer.json()["status"] == "pending")
    found: dict[str, Any] = answer.json()
    return found


async def test_a_good_job_is_told_its_numbers_and_nothing_is_made(api: Api) -> None:
    async with api.http() as http:
        file = await upload(http)
        before = await api.db["jobs"].count_documents({})
        pending = await validate(http, model=TINY, training_file=file)
        assert (pending["status"], pending["valid"], pending["hyperparameters"]) == ("pending", None, None)
        await read_file(api.db, file, num_examples=20, num_tokens=400)
        told = await validate(http, model=TINY, training_file=file, hyperparameters={"batch_size": 4})
        assert (told["object"], told["status"], told["valid"], told["errors"]) == (
            "fine_tuning.validation",
            "done",
            True,
            [],
        )
        assert (told["num_examples"], told["num_tokens"], told["estimated_steps"]) == (20, 400, 25)
        resolved = told["hyperparameters"]
        assert (resolved["n_epochs"], resolved["batch_size"], resolved["learning_rate"]) == (5, 4, 2e-4)
        assert (resolved["context_length"], resolved["on_overlength"]) == (512, "error")
        assert await api.db["jobs"].count_documents({}) == before


async def test_every_mistake_is_named(api: Api) -> None:
    async with api.http() as http:
        file = await upload(http, "few.jsonl")
        await read_file(api.db, file, num_examples=3)
        told = await validate(http, model="none", training_file=file, validation_file="file-nothere")
        assert [(each["code"], each["param"]) for each in told["errors"]] == [
            ("model_not_found", "model"),
            ("file_not_found", "validation_file"),
        ]
        few = await validate(http, model=TINY, training_file=file)
        assert [(each["code"], each["param"]) for each in few["errors"]] == [("invalid_n_examples", "training_file")]
        method = await validate(http, model=TINY, training_file=file, method={"type": "dpo"})
        assert (method["valid"], method["errors"][0]["code"]) == (False, "unsupported_method")
        same = await http.post(
            "/v1/fine_tuning/jobs", json={"model": TINY, "training_file": file, "validation_file": "few.jsonl"}
        )
        assert (same.status_code, same.json()["error"]["param"]) == (400, "validation_file")
        unknown = await http.post("/v1/fine_tuning/validate", json={"model": TINY, "training_file": file, "x": 1})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_parameter")


async def test_the_lines_of_a_file_that_was_refused_are_named(api: Api) -> None:
    async with api.http() as http, open_objects(f"file://{api.home}/objects") as objects:
        file = await upload(http, "bad.jsonl")
        finding = {"line": 7, "byte_offset": 0, "path": "messages[0]", "severity": "error", "message": "No role."}
        warning = finding | {"line": 8, "code": "empty_content", "severity": "warning"}
        key = f"org-default/proj-default/files/{file}.report.json"
        report = {"findings": [finding | {"code": "message_missing_key"}, warning]}
        await objects.put(key, json.dumps(report).encode())
        problem = f.Problem(code="message_missing_key", message="1 line cannot be trained on", line=7, owner="user")
        verdict = f.FileValidated(valid=False, num_examples=19, report_key=key, problem=problem)
        await advance(api.db, Kind.FILE, file, verdict, actor=ACTOR)
        told = await validate(http, model=TINY, training_file=file)
        line = {
            "code": "message_missing_key",
            "message": "No role. (messages[0])",
            "param": "training_file",
            "line": 7,
        }
        assert (told["valid"], told["errors"]) == (False, [line])
        await objects.delete(key)
        without = await validate(http, model=TINY, training_file=file)
        assert [(each["code"], each["line"]) for each in without["errors"]] == [("message_missing_key", 7)]


async def test_capacity_tells_of_others_only_numbers(api: Api) -> None:
    node = "node-capacity"
    joined = f.NodeJoined(role="trainer", num_slots=2, device="cpu")
    slots = [{"index": 0, "holder": {"job": "ftjob-x"}}, {"index": 1, "holder": None}]
    owned = {"org": "system", "project": "system", "owner": "system", "slots": slots, "draining": False}
    await create(api.db, joined, node, owned, actor=ACTOR)
    await advance(api.db, Kind.NODE, node, joined, actor=ACTOR)
    await api.db["nodes"].update_one({"_id": node}, [{"$set": {"renewed_at": "$$NOW"}}])
    foreign = await JobStory.created(api.db)
    async with api.http(await api.new_key(*SCOPES, project="proj-capacity")) as http:
        file = await upload(http)
        job = (await http.post("/v1/fine_tuning/jobs", json={"model": TINY, "training_file": file})).json()["id"]
        await queue(api.db, job)
        await JobStory(api.db, canonical_id(job)).tell(f.QueueReasonChanged(reason="no_free_slots", message="Full."))
        answer = await http.get("/v1/fine_tuning/capacity")
        told = answer.json()
        assert told["object"] == "fine_tuning.capacity"
        assert [each for each in told["nodes"] if each["id"] == node] == [
            {"id": node, "device": "cpu", "draining": False, "slots": {"total": 2, "free": 1}}
        ]
        assert (told["slots"]["total"] >= 2, told["slots"]["free"] >= 1) == (True, True)
        assert told["counts"]["validating_files"] >= 1
        assert told["project"]["counts"] == {"validating_files": 0, "queued": 1, "running": 0}
        assert [each["id"] for each in told["project"]["waiting"]] == [job]
        assert told["project"]["waiting"][0]["x_queue"]["reason"] == "no_free_slots"
        assert {"id": TINY, "aliases": ["some/Tiny-Base"], "context_length": 512} in told["models"]
        assert foreign.id not in answer.text
    await asyncio.gather(
        advance(api.db, Kind.NODE, node, f.NodeLeft(), actor=ACTOR),
        advance(api.db, Kind.JOB, foreign.id, f.JobCancelled(), actor=ACTOR),
    )
