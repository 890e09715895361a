"""The sentences that clients parse, and the ids by which they page."""

from datetime import UTC, datetime
from typing import Any

import pytest

from builders.jobs import make_blob, make_resolved, make_spec, make_step
from luthier_api.domain import View
from luthier_api.wire.events import Place, place_of, render, rendered_types
from luthier_common.contract import events as f

JOB = "ftjob-0199aabbccdd001122334455"
PROBLEM = f.Problem(code="out_of_memory", message="no room", owner="user")


def make_row(fact: f.Fact, *, seq: int = 7, attempt: int = 1, generation: int = 1) -> dict[str, Any]:
    body = {"thing": JOB, "attempt": attempt, "generation": generation, "data": fact.model_dump(mode="json")}
    return {
        "thing": JOB,
        "seq": seq,
        "type": fact.type,
        "at": datetime(2026, 1, 2, 3, 4, 5, 900_000, UTC),
        "body": body,
    }


CASES: list[tuple[f.Fact, dict[str, int], list[str], str]] = [
    (
        f.JobCreated(spec=make_spec(validation_file="file-v")),
        {},
        [
            f"Created fine-tuning job: {JOB}",
            "Validating training file: file-training and validation file: file-v",
        ],
        "info",
    ),
    (
        f.DatasetProcessed(
            file_id="file-1", role="training", num_examples=1, num_tokens=2, num_trained_tokens=1, sha256="0"
        ),
        {},
        ["Dataset 'file-1' processed successfully"],
        "info",
    ),
    (f.DataAccepted(num_examples=1, num_tokens=2), {}, ["Files validated, moving job to queued state"], "info"),
    (f.DataRejected(problem=PROBLEM), {}, ["Fine-tuning job failed: no room"], "error"),
    (f.QueueReasonChanged(reason="no_slots", message="Waiting for slots"), {}, ["Waiting for slots"], "info"),
    (
        f.JobPlaced(
            attempt=2,
            members=(f.Member(node="n1", slots=(0,)),),
            resumes_from_step=4,
            resolved=make_resolved(),
            base_digest="0",
        ),
        {},
        ["Job placed on n1 as attempt 2, going on from step 4"],
        "info",
    ),
    (f.RunStarted(total_steps=6, num_epochs=2, num_examples=12, device="cpu"), {}, ["Fine-tuning job started"], "info"),
    (
        f.RunStarted(total_steps=6, num_epochs=2, num_examples=12, device="cpu", resumed_from_step=4),
        {"attempt": 2},
        ["Fine-tuning job resumed from step 4 (attempt 2)"],
        "info",
    ),
    (make_step(2), {}, ["Step 2/6: training loss=1.0000"], "info"),
    (
        f.ValidationCompleted(
            step=3, total_steps=6, train_loss=0.5, full_valid_loss=0.25, full_valid_mean_token_accuracy=1
        ),
        {},
        ["Step 3/6: training loss=0.5000, full validation loss=0.2500"],
        "info",
    ),
    (f.CheckpointSaved(step=3, attempt=1, blob=make_blob()), {}, ["Checkpoint created at step 3"], "info"),
    (
        f.CheckpointRejected(step=3, problem="its manifest differs"),
        {},
        ["Checkpoint of step 3 cannot be used: its manifest differs; the run starts again"],
        "warn",
    ),
    (f.PauseRequested(), {}, ["Pause requested; the run saves a checkpoint and leaves its slots"], "info"),
    (f.JobPaused(), {}, ["Fine-tuning job paused"], "info"),
    (f.RunPaused(step=3), {}, ["Fine-tuning job paused at step 3"], "info"),
    (f.JobResumed(), {}, ["Fine-tuning job resumed, moving job to queued state"], "info"),
    (
        f.RunLost(reason="lease_expired"),
        {},
        ["Attempt 1 was lost (lease_expired); the job will be tried again"],
        "warn",
    ),
    (
        f.RunFailed(problem=PROBLEM, retryable=True),
        {},
        ["Attempt 1 failed: no room; the job will be tried again"],
        "warn",
    ),
    (f.RunFailed(problem=PROBLEM, retryable=False), {}, ["Fine-tuning job failed: no room"], "error"),
    (
        f.RunFinished(step=6, artifact=make_blob(), trained_tokens=1, train_loss=1),
        {},
        ["Training completed successfully"],
        "info",
    ),
    (
        f.ModelRegistered(model_id="m", model_name="ft:b:o:s:i"),
        {},
        ["New fine-tuned model created: ft:b:o:s:i", "The job has successfully completed"],
        "info",
    ),
    (f.JobCancelled(), {}, ["Fine-tuning job cancelled"], "info"),
    (f.JobFailed(problem=PROBLEM), {}, ["Fine-tuning job failed: no room"], "error"),
    (f.JobRestarted(), {"generation": 2}, ["Fine-tuning job restarted (run 2 of the job)"], "info"),
    (f.JobDeleted(), {}, ["Fine-tuning job deleted"], "info"),
    (f.ServingSkipped(reason="no engine"), {}, ["The model is published untried: no engine"], "warn"),
]


@pytest.mark.parametrize(("fact", "options", "messages", "level"), CASES)
def test_each_fact_says_its_sentence(fact: f.Fact, options: dict[str, int], messages: list[str], level: str) -> None:
    lines = render(make_row(fact, **options), View())
    assert [line["message"] for line in lines] == messages
    assert {line["level"] for line in lines} == {level}
    assert {line["object"] for line in lines} == {"fine_tuning.job.event"}
    assert {line["created_at"] for line in lines} == {1767323045}


def test_every_fact_of_a_job_has_a_line() -> None:
    assert rendered_types() == {name for name, fact in f.FACTS.items() if issubclass(fact, f.JobFact)}


def test_a_fact_of_a_newer_version_has_none() -> None:
    assert render(make_row(f.JobPaused()) | {"type": "JobTeleported"}, View()) == []


def test_a_step_carries_its_metrics() -> None:
    line = render(make_row(make_step(2)), View())[0]
    assert line["type"] == "metrics"
    assert line["data"]["train_loss"] == 1.0
    assert line["data"]["train_mean_token_accuracy"] == 0.5
    assert "grad_norm" not in line["data"]


def test_ids_sort_and_lead_back() -> None:
    rows = [make_row(f.JobCreated(spec=make_spec()), seq=seq) for seq in (1, 2, 10, 999_999)]
    ids = [line["id"] for row in rows for line in render(row, View())]
    assert ids == sorted(ids)
    assert place_of(ids[-1], JOB) == Place(999_999, 2)
    assert place_of(ids[0], "ftjob-other") is None
    assert place_of("ftevent-nonsense", JOB) is None


@pytest.mark.parametrize("fact", [case[0] for case in CASES if case[0].type in ("JobCreated", "DatasetProcessed")])
def test_the_ids_in_a_sentence_are_spelled_as_the_clients_dialect_spells_them(fact: f.Fact) -> None:
    as_stored = render(make_row(fact), View())
    spelled = render(make_row(fact), View("mka1"))
    expected = [line["message"].replace("ftjob-", "ftjob_").replace("file-", "file_") for line in as_stored]
    assert [line["message"] for line in spelled] == expected
