"""The life of a job, written down a second time by hand: a change of the table is a change that somebody meant."""

from typing import Any

from builders.jobs import make_blob, make_resolved, make_spec, make_step
from luthier_common.contract import events as f
from luthier_common.contract.lifecycle import JOB, NEW
from luthier_common.contract.reasons import FailureReason

PROBLEM = f.Problem(code=FailureReason.INTERNAL, message="it failed")
COUNTS: dict[str, Any] = {"num_examples": 12, "num_tokens": 600}
MODEL = {"model_id": "ftmodel-1", "model_name": "ft:tiny"}
LIVE = ("checking", "waiting", "placed", "training", "pausing", "trained", "staged", "verified", "paused")
HELD = ("placed", "training", "pausing")


def stays(*phases: str) -> dict[str, str]:
    return {phase: phase for phase in phases}


def goes(to: str, *phases: str) -> dict[str, str]:
    return dict.fromkeys(phases, to)


LIFE: list[tuple[f.JobFact, dict[str, str]]] = [
    (f.JobCreated(spec=make_spec()), goes("checking", NEW)),
    (
        f.DatasetProcessed(file_id="file-1", role="training", num_trained_tokens=1, sha256="0" * 64, **COUNTS),
        stays("checking"),
    ),
    (f.DataAccepted(**COUNTS), goes("waiting", "checking")),
    (f.DataRejected(problem=PROBLEM), goes("failed", "checking")),
    (f.QueueReasonChanged(reason="no_free_slots", message="wait"), stays("waiting")),
    (
        f.JobPlaced(
            attempt=1, members=(f.Member(node="n", slots=(0,)),), resolved=make_resolved(), base_digest="0" * 64
        ),
        goes("placed", "waiting"),
    ),
    (f.CheckpointRejected(step=1, problem="cut short"), stays("placed", "pausing")),
    (
        f.RunStarted(total_steps=6, num_epochs=2, num_examples=12, device="cpu"),
        goes("training", "placed") | stays("pausing"),
    ),
    (make_step(1), stays("training", "pausing")),
    (
        f.ValidationCompleted(step=1, total_steps=6, full_valid_loss=1.0, full_valid_mean_token_accuracy=0.5),
        stays("training", "pausing"),
    ),
    (f.CheckpointSaved(step=1, attempt=1, blob=make_blob()), stays("training", "pausing")),
    (f.PauseRequested(), goes("pausing", "placed", "training")),
    (f.JobPaused(), goes("paused", "waiting")),
    (f.RunPaused(step=1), goes("paused", "pausing")),
    (f.JobResumed(), goes("waiting", "paused")),
    (f.RunLost(reason=FailureReason.LEASE_EXPIRED), goes("waiting", "placed", "training") | goes("paused", "pausing")),
    (
        f.RunFailed(problem=PROBLEM, retryable=True),
        goes("waiting", "placed", "training") | goes("paused", "pausing"),
    ),
    (f.RunFailed(problem=PROBLEM, retryable=False), goes("failed", *HELD)),
    (
        f.RunFinished(step=6, artifact=make_blob(), trained_tokens=9, train_loss=0.5),
        goes("trained", "training", "pausing"),
    ),
    (f.ArtifactStaged(blob=make_blob(), **MODEL), goes("staged", "trained")),
    (f.ServingVerified(node="n", num_golden_rows=1, num_answer_tokens=1, latency_s=0.1), goes("verified", "staged")),
    (f.ServingRefused(problem=PROBLEM), goes("failed", "staged")),
    (f.ServingSkipped(reason="nobody serves it"), goes("verified", "staged")),
    (f.ModelRegistered(**MODEL), goes("succeeded", "verified")),
    (f.JobFailed(problem=PROBLEM), goes("failed", "waiting", "trained", "verified")),
    (f.JobCancelled(), goes("cancelled", *LIVE)),
    (f.JobRestarted(), goes("checking", "failed", "cancelled")),
    (f.JobDeleted(), stays("succeeded", "failed", "cancelled")),
]
"""Each fact, and from where to where it leads; nowhere else may it be stated."""


def test_each_fact_of_a_job_leads_where_it_is_meant_to() -> None:
    for fact, wanted in LIFE:
        assert JOB.moves([fact]) == wanted, fact.type


def test_no_fact_of_a_job_is_left_out() -> None:
    assert {fact.type for fact, _ in LIFE} == {row.fact.__name__ for row in JOB.rows}
