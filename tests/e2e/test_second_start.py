"""A second start finds everything again, though the embedded broker kept nothing."""

from pathlib import Path

import pytest

from builders.workshop import stack_settings, wait_ready, workshop_of
from luthier_stack.stack import Stack


@pytest.mark.timeout(600)
async def test_files_jobs_events_and_models_outlive_a_stop(tmp_path: Path, tiny_base: Path, rows: Path) -> None:
    home = tmp_path / "home"
    async with Stack(stack_settings(home, tiny_base)) as stack:
        await wait_ready(stack)
        async with workshop_of(stack) as workshop:
            job = await workshop.ended((await workshop.create(rows)).id)
            assert job.fine_tuned_model is not None
            events = await workshop.events(job.id)
            answer = await workshop.ask(job.fine_tuned_model)
        key = stack.admin_key
    async with Stack(stack_settings(home, tiny_base)) as stack:
        await wait_ready(stack)
        assert stack.admin_key == key
        async with workshop_of(stack) as workshop:
            assert await workshop.client.fine_tuning.jobs.retrieve(job.id) == job
            assert await workshop.events(job.id) == events
            assert [file.id async for file in workshop.client.files.list(purpose="fine-tune")] == [job.training_file]
            assert await workshop.ask(job.fine_tuned_model) == answer
            again = await workshop.ended((await workshop.create(rows)).id)
            assert again.status == "succeeded", again.error
            await workshop.assert_told_exactly(again.id)
