"""Each part is killed once while a job is in flight: the job still ends exactly once and its model answers."""

import signal
from pathlib import Path

import pytest

from builders.workshop import Workshop
from luthier_stack.stack import Stack

MOMENTS = [
    ("api", "training"),
    ("file-validator", "checking"),
    ("scheduler", "waiting"),
    ("trainer", "training"),
    ("registry", "trained"),
    ("inference", "staged"),
    ("mongod", "training"),
    ("tansu", "training"),
]


@pytest.mark.parametrize(("part", "phase"), MOMENTS, ids=[part for part, _ in MOMENTS])
async def test_a_killed_part_costs_no_job_and_no_event(
    stack: Stack, workshop: Workshop, rows: Path, part: str, phase: str
) -> None:
    before = stack.restart_count(part)
    job = await workshop.create(rows, num_epochs=20)
    await workshop.passed(job.id, phase)
    stack.kill(part, signal.SIGKILL)
    await stack.wait_ready(part, 60)
    assert stack.restart_count(part) == before + 1
    ended = await workshop.ended(job.id)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model is not None
    await workshop.assert_told_exactly(job.id)
    assert await workshop.ask(ended.fine_tuned_model)
    for node in await workshop.db["nodes"].find({"role": "trainer"}).to_list(None):
        assert all(slot["holder"] is None for slot in node["slots"])
