"""What only a deleted job needed goes with it, whatever happens meanwhile; its model stays unless asked."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import openai
import pytest

from builders.deleted_jobs import LINE, delete, ended_job, new_job, succeeded_job, upload
from builders.waiting import until
from integration.api.conftest import Api
from luthier_api.store.deletion import END_OF_JOB
from luthier_common.contract import events as f
from luthier_common.contract.ids import result_file_id_of
from luthier_common.kit import ledger
from luthier_common.kit.objects import ObjectStore, open_objects


@pytest.fixture
async def objects(api: Api) -> AsyncIterator[ObjectStore]:
    async with open_objects(f"file://{api.home}/objects") as opened:
        yield opened


async def held_by(api: Api, key: str) -> list[str] | None:
    row = await api.db["objects"].find_one({"_id": key})
    return None if row is None else sorted(row["references"])


async def sweep(api: Api, objects: ObjectStore) -> None:
    """As the registry does, an hour later: every deadline has passed."""
    over = {"intent_until": {"$subtract": ["$$NOW", 1]}}
    await api.db["objects"].update_many({"intent_until": {"$type": "date"}}, [{"$set": over}])
    await ledger.sweep(api.db, objects, older_than_s=0, most=10_000)


async def lent(api: Api, name: str) -> None:
    now = datetime.now(UTC)
    row = {"name": "proj-lent", "org": "org-default", "created_at": now}
    await api.db["projects"].update_one({"_id": "proj-lent"}, {"$setOnInsert": row}, upsert=True)
    await api.sdk().fine_tuning.checkpoints.permissions.create(name, project_ids=["proj-lent"])


async def test_its_bytes_go_and_its_model_stays(api: Api, objects: ObjectStore) -> None:
    sdk, file = api.sdk(), await upload(api, "deleted-before-its-job.jsonl")
    story, _saved, permanent = await succeeded_job(api, objects, file.id)
    stored = await api.db["files"].find_one({"_id": file.id})
    assert stored is not None
    job = await sdk.fine_tuning.jobs.retrieve(story.id)
    assert job.fine_tuned_model is not None
    metrics, weights = job.result_files
    await until(lambda: is_listed(api, story.id), what="the checkpoint is listed")
    checkpoint = (await sdk.fine_tuning.jobs.checkpoints.list(story.id)).data[0].fine_tuned_model_checkpoint
    await lent(api, checkpoint)
    await sdk.files.delete(file.id)
    await sweep(api, objects)
    assert await objects.head(stored["object_key"]) is not None, "the job may need its data again"
    assert (await sdk.models.retrieve(checkpoint)).id == checkpoint

    await delete(api, story.id)
    await sweep(api, objects)
    assert await objects.head(stored["object_key"]) is None
    assert [info.key async for info in objects.list(f"org-default/proj-default/jobs/{story.id}/")] == []
    for missing in (sdk.models.retrieve(checkpoint), sdk.files.retrieve(metrics)):
        with pytest.raises(openai.NotFoundError):
            await missing
    assert await api.db["checkpoint_permissions"].find_one({"name": checkpoint}) is None
    assert (await sdk.models.retrieve(job.fine_tuned_model)).id == job.fine_tuned_model
    assert job.fine_tuned_model in [model.id async for model in sdk.models.list()]
    assert (await sdk.files.content(weights)).content == b"weights"
    assert len([info async for info in objects.list(permanent)]) == 3
    assert "release_due" not in await story.doc()

    await sdk.models.delete(job.fine_tuned_model)
    await sweep(api, objects)
    assert [info async for info in objects.list(permanent)] == []


async def is_listed(api: Api, job_id: str) -> bool:
    return bool((await api.sdk().fine_tuning.jobs.checkpoints.list(job_id)).data)


async def test_a_model_goes_too_where_that_is_asked(api: Api, objects: ObjectStore) -> None:
    sdk, file = api.sdk(), await upload(api)
    story, _, permanent = await succeeded_job(api, objects, file.id)
    job = await sdk.fine_tuning.jobs.retrieve(story.id)
    assert job.fine_tuned_model is not None
    await delete(api, story.id, delete_model=True)
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve(job.fine_tuned_model)
    for file_id in job.result_files:
        with pytest.raises(openai.NotFoundError):
            await sdk.files.retrieve(file_id)
    await sweep(api, objects)
    assert [info async for info in objects.list(permanent)] == []
    assert (await sdk.files.content(file.id)).content == LINE * 20, "a file that its user kept stays"


async def test_a_model_that_was_deleted_before_is_no_hindrance(api: Api, objects: ObjectStore) -> None:
    story, *_ = await succeeded_job(api, objects, (await upload(api)).id)
    name = (await api.sdk().fine_tuning.jobs.retrieve(story.id)).fine_tuned_model
    assert name is not None
    await api.sdk().models.delete(name)
    assert (await delete(api, story.id, delete_model=True))["deleted"]
    plain = await ended_job(api)
    assert (await delete(api, plain.id, delete_model=True))["deleted"]


async def test_what_a_crash_behind_the_fact_left_is_let_go_by_the_sweep(api: Api, objects: ObjectStore) -> None:
    story, saved, _ = await succeeded_job(api, objects, (await upload(api)).id)
    assert await held_by(api, saved) == [f"job/{story.id}"]
    metrics = result_file_id_of(story.id, 1)
    assert (await story.tell(f.JobDeleted(), op_id="JobDeleted/1", also=END_OF_JOB)).applied

    async def is_let_go() -> bool:
        return "release_due" not in await story.doc()

    await until(is_let_go, what="the sweep has passed")
    assert await held_by(api, saved) == []
    file = await api.db["files"].find_one({"_id": metrics})
    assert file is not None
    assert (file["phase"], await held_by(api, file["object_key"])) == ("deleted", [])


async def test_what_a_run_stores_after_its_job_was_deleted_is_let_go_too(api: Api, objects: ObjectStore) -> None:
    story = await (await new_job(api)).in_training()
    holder = {"job": story.id, "attempt": 1}
    slots = [{"index": 0, "gpu": None, "holder": holder}]
    await api.db["nodes"].insert_one({"_id": "node-late", "role": "trainer", "phase": "live", "slots": slots, "seq": 1})
    try:
        await api.sdk().fine_tuning.jobs.cancel(story.id)
        await delete(api, story.id)
        log = f"org-default/proj-default/jobs/{story.id}/a1/log.txt"
        await objects.put(log, b"the end")
        await ledger.record(
            api.db, log, sha256="0" * 64, num_bytes=7, org="org-default", project="proj-default",
            reference=f"job/{story.id}",
        )  # fmt: skip
        await until(lambda: is_free(api, log), what="the log is let go")
        assert (await story.doc())["release_due"], "the run holds its slots and may store more"
        await api.db["nodes"].update_one({"_id": "node-late"}, {"$set": {"slots.0.holder": None}})

        async def is_over() -> bool:
            return "release_due" not in await story.doc()

        await until(is_over, what="nobody works on the job any more")
    finally:
        await api.db["nodes"].delete_one({"_id": "node-late"})


async def is_free(api: Api, key: str) -> bool:
    return await held_by(api, key) == []
