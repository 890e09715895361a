"""Documents as clients see them: all required keys, nothing invented."""

from datetime import UTC, datetime
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob

from builders.jobs import make_resolved, make_spec
from luthier_api.domain import View, clean_filename
from luthier_api.services.engines import in_order
from luthier_api.wire.jobs import job_object
from luthier_api.wire.lists import list_object

AT = datetime(2026, 1, 2, 3, 4, 5, 900_000, UTC)


def make_job(**changes: Any) -> dict[str, Any]:
    job = {
        "_id": "ftjob-1",
        "org": "org-default",
        "phase": "checking",
        "status": "validating_files",
        "created_at": AT,
        "updated_at": AT,
        "spec": make_spec().model_dump(mode="json"),
        "metadata": None,
        "attempt": 0,
    }
    return job | changes


def test_a_fresh_job_has_every_required_key_and_no_numbers_yet() -> None:
    shown = job_object(make_job(), View())
    FineTuningJob.model_validate(shown, strict=True)
    assert FineTuningJob.model_fields.keys() <= shown.keys()
    assert shown["created_at"] == 1767323045
    assert shown["hyperparameters"]["n_epochs"] == "auto"
    for name in ("fine_tuned_model", "error", "finished_at", "trained_tokens", "estimated_finish", "validation_file"):
        assert shown[name] is None, name


def test_a_running_job_shows_numbers_and_when_it_may_end() -> None:
    running = make_job(
        phase="training",
        status="running",
        resolved=make_resolved().model_dump(mode="json"),
        last_step=2,
        total_steps=6,
        step_time_s=10.0,
        trained_tokens=100,
        attempt=1,
    )
    shown = job_object(running, View())
    assert shown["hyperparameters"]["n_epochs"] == 2
    assert shown["hyperparameters"]["learning_rate"] == 2e-4
    assert "seed" not in shown["hyperparameters"]
    assert shown["method"]["supervised"]["hyperparameters"] == shown["hyperparameters"]
    assert shown["estimated_finish"] == 1767323085
    assert job_object(running | {"step_time_s": None}, View())["estimated_finish"] is None


def test_a_waiting_job_says_why() -> None:
    queue = {"reason": "no_slots", "message": "Waiting for slots", "position": 2}
    assert job_object(make_job(phase="waiting", status="queued", queue=queue), View())["x_queue"] == queue
    assert job_object(make_job(queue=queue), View())["x_queue"] is None


def test_lists_name_their_ends() -> None:
    assert list_object([{"id": "a"}, {"id": "b"}], has_more=True) == {
        "object": "list",
        "data": [{"id": "a"}, {"id": "b"}],
        "first_id": "a",
        "last_id": "b",
        "has_more": True,
    }
    assert list_object([], has_more=False)["last_id"] is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("train.jsonl", "train.jsonl"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("a\r\nb\x00.jsonl", "ab.jsonl"),
        ("e\u0301.jsonl", "\u00e9.jsonl"),
        ("\u202egnp.exe", "gnp.exe"),
        ("", "unnamed"),
        ("\u044f" * 200, "\u044f" * 127),
    ],
)
def test_a_filename_is_harmless(given: str, kept: str) -> None:
    assert clean_filename(given) == kept


def test_a_model_keeps_its_engine_when_another_leaves() -> None:
    nodes = {f"node-{n}": f"http://{n}" for n in range(5)}
    firsts = {name: in_order(nodes, name)[0] for name in map(str, range(40))}
    assert len(set(firsts.values())) > 2
    fewer = {node: address for node, address in nodes.items() if node != "node-0"}
    assert all(in_order(fewer, name)[0] == first for name, first in firsts.items() if first != "http://0")
