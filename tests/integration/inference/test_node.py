"""An inference node as other rooms see it: its document, its answers, and what it says of finished models."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from builders.jobs import JobStory
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectStore

BODY: dict[str, Any] = {
    "base": "tiny",
    "model": "tiny",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "temperature": 0,
    "max_tokens": 12,
}
URL = "/internal/chat/completions"
MakeArtifact = Callable[..., Awaitable[Any]]
Stage = Callable[[f.Blob], Awaitable[JobStory]]


async def until_phase(story: JobStory, *phases: str) -> Doc:
    async def seen() -> Doc | None:
        doc = await story.doc()
        return doc if doc["phase"] in phases else None

    return await until(seen, what=f"phase {phases}")


def read_events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_streamed_and_whole_answers_are_equal(node: Any, make_artifact: MakeArtifact) -> None:
    artifact = await make_artifact()
    answers = set()
    for adapter in (None, artifact.reference):
        body = {**BODY, "adapter": adapter}
        whole = (await node.client.post(URL, json=body)).raise_for_status().json()
        streaming = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = (await node.client.post(URL, json={**body, **streaming})).raise_for_status()
        events = read_events(streamed.text)
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        assert text == whole["choices"][0]["message"]["content"]
        assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert events[-1]["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] == 12
        answers.add(text)
    assert len(answers) == 2


async def test_base_can_be_named_by_its_alias(node: Any) -> None:
    assert (await node.client.post(URL, json={**BODY, "base": "org/Tiny"})).status_code == 200
    assert (await node.client.get("/internal/models")).json()["data"] == [{"id": "tiny", "object": "model"}]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"base": "nobody"}, 404, "base_missing", None),
        ({"n": 2}, 400, "unsupported_parameter", "n"),
        ({"messages": []}, 400, "no_messages", "messages"),
        ({"messages": [{"role": "user", "content": "x " * 900}]}, 400, "context_length_exceeded", None),
        ({"messages": [{"role": "user", "content": "x " * 900}], "stream": True}, 400, "context_length_exceeded", None),
        ({"adapter": {"model_id": "m", "key": "a/b/", "manifest_sha256": "0" * 64}}, 404, "object_missing", None),
    ],
)
async def test_errors_are_told_before_the_answer(
    node: Any, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    response = await node.client.post(URL, json={**BODY, **change})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


async def test_nobody_comes_in_without_the_token(node: Any) -> None:
    response = await node.client.post(URL, json=BODY, headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "unauthorized"


async def test_finished_model_is_tried_and_verified(node: Any, make_artifact: MakeArtifact, stage: Stage) -> None:
    story = await stage((await make_artifact()).blob)
    doc = await until_phase(story, "verified", "failed")
    fact = next(entry for entry in doc["outbox"] if entry["type"] == "ServingVerified")
    assert fact["data"]["num_golden_rows"] == 3
    assert fact["data"]["num_answer_tokens"] > 0
    assert fact["actor"]["room"] == "inference"
    assert (await node.client.get("/internal/models")).status_code == 200


def other_ids(golden: list[dict[str, Any]]) -> None:
    golden[1]["input_ids"][3] += 1


async def test_model_whose_rows_give_other_ids_is_refused(node: Any, make_artifact: MakeArtifact, stage: Stage) -> None:
    story = await stage((await make_artifact(other_ids, seed=2)).blob)
    doc = await until_phase(story, "verified", "failed")
    assert doc["error"]["code"] == "template_mismatch"
    assert "golden row 1" in doc["error"]["message"]
    assert node.process.returncode is None


async def test_model_whose_bytes_changed_is_refused(
    node: Any, make_artifact: MakeArtifact, stage: Stage, objects: ObjectStore
) -> None:
    artifact = await make_artifact(seed=3)
    weights = bytearray((artifact.directory / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    await objects.put(artifact.blob.key + "adapter_model.safetensors", bytes(weights))
    doc = await until_phase(await stage(artifact.blob), "verified", "failed")
    assert doc["error"]["code"] == "artifact_corrupt"
    assert node.process.returncode is None
