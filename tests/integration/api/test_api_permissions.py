"""Checkpoints that are called as models, who else may call them, and their weights as files."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from builders.engines import Engine, joined
from builders.jobs import JobStory, make_blob, make_step
from builders.waiting import until
from integration.api.conftest import TINY, Api
from integration.api.tenants import WEIGHTS, store_weights
from luthier_common.contract import events as f
from luthier_common.kit import ledger

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
ASKED: Any = [{"role": "user", "content": "hi"}]


@dataclass
class Saved:
    """A job whose run has saved checkpoints; `blob` is the last one's."""

    story: JobStory
    blob: f.Blob
    checkpoint: FineTuningJobCheckpoint

    @property
    def name(self) -> str:
        return self.checkpoint.fine_tuned_model_checkpoint


Save = Callable[[], Awaitable[Saved]]


@pytest.fixture
async def save(api: Api) -> Save:
    """Makes a job over the API and tells its story to a checkpoint at step 3."""
    sdk = api.sdk()

    async def run() -> Saved:
        file = await sdk.files.create(file=("permissions.jsonl", LINE * 20), purpose="fine-tune")
        job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id, suffix="a.b")
        story = JobStory(api.db, job.id)
        await story.in_training()
        await story.tell(make_step(3), attempt=1)
        blob = await _store(api, job.id, "step-3")
        metrics = {"train_loss": 0.5}
        assert (await story.tell(f.CheckpointSaved(step=3, attempt=1, blob=blob, metrics=metrics), attempt=1)).applied
        checkpoint = await _listed(sdk, job.id)
        return Saved(story, blob, checkpoint)

    return run


async def _store(api: Api, job_id: str, place: str) -> f.Blob:
    owned = {"org": "org-default", "project": "proj-default"}
    return await store_weights(api, owned, f"org-default/proj-default/jobs/{job_id}/a1/{place}/", f"job/{job_id}")


async def _listed(sdk: AsyncOpenAI, job_id: str) -> FineTuningJobCheckpoint:
    async def seen() -> FineTuningJobCheckpoint | None:
        found = (await sdk.fine_tuning.jobs.checkpoints.list(job_id)).data
        return found[0] if found else None

    return await until(seen, what="the checkpoint is listed")


async def _project(api: Api, project: str, org: str = "org-default") -> str:
    await api.db["orgs"].update_one({"_id": org}, {"$setOnInsert": {"name": org}}, upsert=True)
    row = {"_id": project, "name": project, "org": org, "created_at": datetime.now(UTC)}
    await api.db["projects"].replace_one({"_id": project}, row, upsert=True)
    return project


async def _refused(call: Awaitable[Any], error: type[openai.APIStatusError], code: str) -> openai.APIStatusError:
    with pytest.raises(error) as caught:
        await call
    assert caught.value.code == code
    return caught.value


async def test_a_checkpoint_answers_as_a_model_whatever_becomes_of_its_job(api: Api, save: Save) -> None:
    saved = await save()
    sdk, engine = api.sdk(), Engine("engine-checkpoints")
    assert saved.name.startswith(f"ft:{TINY}:default:a.b:")
    assert saved.name.endswith(":ckpt-step-3")
    assert saved.checkpoint.model_extra is not None
    assert saved.checkpoint.model_extra["x_callable"] is True
    wanted = {
        "model_id": saved.checkpoint.id,
        "key": saved.blob.key,
        "manifest_sha256": saved.blob.manifest_sha256,
        "base_digest": (await saved.story.doc())["base_digest"],
    }
    async with joined(api.db, engine, TINY):
        await sdk.chat.completions.create(model=saved.name, messages=ASKED)
        assert (await saved.story.tell(f.JobCancelled())).applied
        await sdk.chat.completions.create(model=saved.name, messages=ASKED)
    assert [(asked["base"], asked["adapter"]) for asked in engine.asked] == [(TINY, wanted)] * 2
    found = await sdk.models.retrieve(saved.name)
    assert (found.id, found.owned_by) == (saved.name, "org-default")
    assert saved.name not in [model.id async for model in sdk.models.list()]
    for other in (saved.name[:-1] + "4", saved.name + "0", saved.name.replace("a.b", "a-b"), ":ckpt-step-3"):
        await _refused(sdk.models.retrieve(other), openai.NotFoundError, "model_not_found")
    stranger = api.sdk(await api.new_key("admin", project="proj-stranger"))
    await _refused(stranger.models.retrieve(saved.name), openai.NotFoundError, "model_not_found")
    answer = stranger.chat.completions.create(model=saved.name, messages=ASKED)
    await _refused(answer, openai.NotFoundError, "model_not_found")


async def test_a_checkpoint_whose_bytes_are_gone_says_so_and_may_be_taken_back(api: Api, save: Save) -> None:
    saved, sdk = await save(), api.sdk()
    permissions = sdk.fine_tuning.checkpoints.permissions
    project = await _project(api, "proj-borrowed")
    lent = (await permissions.create(saved.name, project_ids=[project])).data[0]
    await ledger.release(api.db, f"job/{saved.story.id}")
    await _refused(sdk.models.retrieve(saved.name), openai.NotFoundError, "checkpoint_gone")
    answer = sdk.chat.completions.create(model=saved.name, messages=ASKED)
    await _refused(answer, openai.NotFoundError, "checkpoint_gone")
    listed = await _listed(sdk, saved.story.id)
    assert listed.fine_tuned_model_checkpoint == saved.name
    assert listed.model_extra is not None
    assert (listed.model_extra["x_callable"], listed.model_extra["result_files"]) == (False, [])
    assert saved.checkpoint.model_extra is not None
    gone = sdk.files.content(saved.checkpoint.model_extra["result_files"][0])
    await _refused(gone, openai.NotFoundError, "not_found")
    again = permissions.create(saved.name, project_ids=[project])
    await _refused(again, openai.NotFoundError, "checkpoint_gone")
    assert [one.id async for one in permissions.list(saved.name)] == [lent.id]
    assert (await permissions.delete(lent.id, fine_tuned_model_checkpoint=saved.name)).deleted
    assert [one.id async for one in permissions.list(saved.name)] == []


async def test_the_weights_of_a_checkpoint_are_files(api: Api, save: Save) -> None:
    saved, sdk = await save(), api.sdk()
    assert saved.checkpoint.model_extra is not None
    ids = saved.checkpoint.model_extra["result_files"]
    files = [await sdk.files.retrieve(file_id) for file_id in ids]
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert [file.filename for file in files] == [f"{saved.checkpoint.id}/{name}" for name in names]
    assert {(file.purpose, file.status) for file in files} == {("fine-tune-results", "processed")}
    assert [(await sdk.files.content(file_id)).content for file_id in ids] == [WEIGHTS[name] for name in names]
    mka1 = f"/api/v1/llm/files/{ids[0].replace('file-', 'file_')}/content"
    async with api.http() as http:
        assert (await http.get(mka1)).content == WEIGHTS["adapter_config.json"]
    await _refused(sdk.files.delete(ids[0]), openai.ConflictError, "invalid_state")
    stranger = api.sdk(await api.new_key("admin", project="proj-stranger"))
    for call in (stranger.files.retrieve(ids[0]), stranger.files.content(ids[0]), stranger.files.delete(ids[0])):
        await _refused(call, openai.NotFoundError, "not_found")


async def test_a_project_calls_anothers_checkpoint_exactly_while_it_may(api: Api, save: Save) -> None:
    saved, sdk, engine = await save(), api.sdk(), Engine("engine-lent")
    borrower, bystander = await _project(api, "proj-borrower"), await _project(api, "proj-bystander")
    theirs = api.sdk(await api.new_key("inference", project=borrower))
    others = api.sdk(await api.new_key("inference", project=bystander))
    alien_project = await _project(api, "proj-alien", org="org-alien")
    alien = api.sdk(await api.new_key("inference", project=alien_project, org="org-alien"))
    permissions = sdk.fine_tuning.checkpoints.permissions
    async with joined(api.db, engine, TINY):
        calls = {
            who: lambda who=who: who.chat.completions.create(model=saved.name, messages=ASKED)
            for who in (theirs, others, alien)
        }
        await _refused(calls[theirs](), openai.NotFoundError, "model_not_found")
        (made,) = (await permissions.create(saved.name, project_ids=[borrower])).data
        assert (await calls[theirs]()).choices[0].message.content == "engine-lent"
        assert engine.asked[-1]["project"] == borrower
        for who in (others, alien):
            await _refused(calls[who](), openai.NotFoundError, "model_not_found")
        await permissions.delete(made.id, fine_tuned_model_checkpoint=saved.name)
        await _refused(calls[theirs](), openai.NotFoundError, "model_not_found")


async def test_permissions_are_made_listed_and_taken_back(api: Api, save: Save) -> None:
    saved = await save()
    sdk = AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0, _strict_response_validation=True)
    api.opened.append(sdk)
    permissions = sdk.fine_tuning.checkpoints.permissions
    projects = [await _project(api, f"proj-listed-{number}") for number in range(3)]
    made = (await permissions.create(saved.name, project_ids=[*projects, projects[0]])).data
    assert [one.project_id for one in made] == projects
    assert all(one.id.startswith("cp_") and one.object == "checkpoint.permission" for one in made)
    again = (await permissions.create(saved.name, project_ids=[projects[1]])).data
    assert again == [made[1]]
    in_order = sorted(one.id for one in made)
    walked = [one.id async for one in permissions.list(saved.name, limit=1, order="ascending")]
    assert walked == in_order
    assert [one.id async for one in permissions.list(saved.name, limit=2)] == in_order[::-1]
    found = await permissions.list(saved.name, project_id=projects[2])
    assert [one.id for one in found.data] == [made[2].id]
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old = await permissions.retrieve(saved.name, order="descending", limit=10)
    assert (len(old.data), old.has_more, old.first_id) == (3, False, in_order[-1])
    gone = await permissions.delete(made[0].id, fine_tuned_model_checkpoint=saved.name)
    assert (gone.id, gone.deleted, gone.object) == (made[0].id, True, "checkpoint.permission")
    repeated = permissions.delete(made[0].id, fine_tuned_model_checkpoint=saved.name)
    await _refused(repeated, openai.NotFoundError, "not_found")
    async with api.http() as http:
        left = [permission_id for permission_id in in_order if permission_id != made[0].id]
        for order in ("asc", "ascending"):
            url = f"/v1/fine_tuning/checkpoints/{quote(saved.name, safe='')}/permissions?order={order}"
            assert [one["id"] for one in (await http.get(url)).json()["data"]] == left
        wrong = await http.get(f"/v1/fine_tuning/checkpoints/{saved.name}/nonsense")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "unknown_url")


async def test_permissions_are_for_admins_and_for_what_is_there(api: Api, save: Save) -> None:
    saved, permissions = await save(), api.sdk().fine_tuning.checkpoints.permissions
    for projects in (["proj-nobody"], [await _project(api, "proj-alien", org="org-alien")]):
        refused = await _refused(
            permissions.create(saved.name, project_ids=projects), openai.BadRequestError, "invalid_value"
        )
        assert refused.param == "project_ids"
    for name in ("ft:nobody:1", TINY, saved.name[:-1] + "9"):
        await _refused(permissions.list(name), openai.NotFoundError, "model_not_found")
        call = permissions.create(name, project_ids=["proj-default"])
        await _refused(call, openai.NotFoundError, "model_not_found")
    weak = api.sdk(await api.new_key("fine-tuning:write", "models:write", "inference"))
    call = weak.fine_tuning.checkpoints.permissions.create(saved.name, project_ids=["proj-default"])
    await _refused(call, openai.PermissionDeniedError, "missing_scope")
    foreign = api.sdk(await api.new_key("admin", project="proj-foreign")).fine_tuning.checkpoints.permissions
    for refusal in (
        foreign.create(saved.name, project_ids=["proj-foreign"]),
        foreign.list(saved.name),
        foreign.delete("cp_1", fine_tuned_model_checkpoint=saved.name),
    ):
        await _refused(refusal, openai.NotFoundError, "model_not_found")


async def test_names_may_hold_slashes_encoded_or_not(api: Api) -> None:
    story = await JobStory.created(api.db, model_name="ft:meta/llama:3.1:default::00ff00ff00ff")
    await story.in_training()
    blob = await _store(api, story.id, "step-3")
    await story.tell(f.CheckpointSaved(step=3, attempt=1, blob=blob), attempt=1)
    name = (await _listed(api.sdk(), story.id)).fine_tuned_model_checkpoint
    assert name == "ft:meta/llama:3.1:default::00ff00ff00ff:ckpt-step-3"
    project = await _project(api, "proj-slash")
    permissions = api.sdk().fine_tuning.checkpoints.permissions
    (made,) = (await permissions.create(name, project_ids=[project])).data
    async with api.http() as http:
        for written in (name, quote(name, safe=":"), quote(name, safe="")):
            listed = await http.get(f"/v1/fine_tuning/checkpoints/{written}/permissions")
            assert [one["id"] for one in listed.json()["data"]] == [made.id]
            assert (await http.get(f"/v1/models/{written}")).json()["id"] == name
            assert (await http.head(f"/v1/models/{written}")).status_code == 200
        url = f"/api/v1/llm/fine_tuning/checkpoints/{quote(name, safe='')}/permissions/{made.id}"
        assert (await http.delete(url)).json()["deleted"] is True


async def test_a_blob_that_nobody_keeps_is_no_model(api: Api) -> None:
    story = await JobStory.created(api.db, model_name="ft:tiny:default::00ff00ff00fe")
    await story.in_training()
    await story.tell(f.CheckpointSaved(step=2, attempt=1, blob=make_blob("org-default/x/")), attempt=1)
    name = (await _listed(api.sdk(), story.id)).fine_tuned_model_checkpoint
    await _refused(api.sdk().models.retrieve(name), openai.NotFoundError, "checkpoint_gone")
