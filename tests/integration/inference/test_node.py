"""An inference node as other rooms see it: its document, its answers, and what it says of finished models."""

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from builders.bases import chat_row
from builders.jobs import JobStory
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectStore
from luthier_text import TextBundle, TrainRow
from luthier_trainer.checkpoints import ADAPTER_FILES, STATE_FILES, seal, staged

BODY: dict[str, Any] = {
    "base": "tiny",
    "model": "tiny",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "temperature": 0,
    "max_tokens": 12,
}
URL = "/internal/chat/completions"
TOO_LONG = [{"role": "user", "content": "x " * 900}]
FAR_TOO_LONG = [{"role": "user", "content": "<|im_end|>" * 1_200_000}]
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


@pytest.fixture
def save_checkpoint(objects: ObjectStore, make_artifact: MakeArtifact, tmp_path: Path) -> Callable[..., Awaitable[Any]]:
    """A checkpoint in the store as the trainer leaves one, and the finished model with the same weights."""

    async def save(seed: int) -> tuple[dict[str, str], dict[str, str]]:
        finished = await make_artifact(seed=seed)
        with staged(tmp_path / f"step-{seed}") as staging:
            for name in ADAPTER_FILES:
                shutil.copy(finished.directory / name, staging)
            for name in STATE_FILES:
                (staging / name).write_bytes(b"for going on only")
            sha256 = seal(staging, "checkpoint", "ftjob-test", 1, seed, {"train_loss": 1.0})
        key = f"org-default/proj-default/jobs/ftjob-test/a1/step-{seed}/"
        for path in (tmp_path / f"step-{seed}").iterdir():
            await objects.upload(path, key + path.name)
        reference = {"model_id": f"ftckpt_test{seed:06d}", "key": key, "manifest_sha256": sha256}
        return reference, finished.reference

    return save


async def test_a_checkpoint_answers_as_a_model_with_its_weights(node: Any, home: Path, save_checkpoint: Any) -> None:
    checkpoint, finished = await save_checkpoint(11)
    answers = []
    for adapter in (checkpoint, finished, None):
        answer = await node.client.post(URL, json={**BODY, "adapter": adapter})
        answers.append(answer.raise_for_status().json()["choices"][0]["message"]["content"])
    assert answers[0] == answers[1] != answers[2]
    (fetched,) = home.rglob(f"*@{checkpoint['manifest_sha256']}")
    assert {path.name for path in fetched.iterdir()} - {".lock"} == {*ADAPTER_FILES, "manifest.json"}


async def test_a_checkpoint_whose_weights_changed_does_not_answer(
    node: Any, objects: ObjectStore, save_checkpoint: Any
) -> None:
    checkpoint, _ = await save_checkpoint(12)
    weights = bytearray(await objects.read(checkpoint["key"] + "adapter_model.safetensors"))
    weights[-1] ^= 1
    await objects.put(checkpoint["key"] + "adapter_model.safetensors", bytes(weights))
    answer = await node.client.post(URL, json={**BODY, "adapter": checkpoint})
    assert answer.json()["error"]["code"] == "artifact_corrupt"
    assert answer.status_code >= 400


async def test_base_can_be_named_by_its_alias(node: Any) -> None:
    assert (await node.client.post(URL, json={**BODY, "base": "org/Tiny"})).status_code == 200
    assert (await node.client.get("/internal/models")).json()["data"] == [{"id": "tiny", "object": "model"}]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"base": "nobody"}, 404, "base_missing", None),
        ({"n": 2}, 400, "unsupported_parameter", "n"),
        ({"messages": []}, 400, "no_messages", "messages"),
        ({"messages": TOO_LONG}, 400, "context_length_exceeded", "messages"),
        ({"messages": FAR_TOO_LONG}, 400, "context_length_exceeded", "messages"),
        ({"messages": TOO_LONG, "stream": True}, 400, "context_length_exceeded", "messages"),
        ({"adapter": {"model_id": "m", "key": "a/b/", "manifest_sha256": "0" * 64}}, 404, "model_files_missing", None),
    ],
)
async def test_errors_are_told_before_the_answer(
    node: Any, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    response = await node.client.post(URL, json={**BODY, **change})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert "a/b/" not in error["message"]


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


async def test_model_of_a_trainer_that_makes_rows_in_another_way_is_tried_without_comparing_them(
    node: Any, make_artifact: MakeArtifact, stage: Stage
) -> None:
    artifact = await make_artifact(other_ids, seed=6, mask_mode="of a former version")
    doc = await until_phase(await stage(artifact.blob), "verified", "failed")
    assert doc["phase"] == "verified", doc["error"]


async def test_model_whose_rows_were_all_cut_is_verified_too(
    node: Any, make_artifact: MakeArtifact, stage: Stage, tiny_base: Path
) -> None:
    """The last prompt of the row is far longer than the model can see."""
    row = {"messages": [*chat_row("Where?", "Here.")["messages"], *chat_row("And now? " * 900, "There.")["messages"]]}
    made = TextBundle.load(tiny_base).train_row(row, 64, "truncate")
    assert isinstance(made, TrainRow)
    cut = {"row": row, "input_ids": made.input_ids, "labels": made.labels, "max_length": 64}

    def put_cut_row(golden: list[dict[str, Any]]) -> None:
        golden[:] = [cut]

    doc = await until_phase(await stage((await make_artifact(put_cut_row, seed=5)).blob), "verified", "failed")
    assert doc["phase"] == "verified", doc["error"]


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
