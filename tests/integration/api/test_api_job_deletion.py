"""A job that is deleted is gone for everybody, and was there only for who made it."""

import httpx2

from builders.deleted_jobs import delete, ended_job, new_job, upload
from builders.histories import broken_history
from builders.lifecycle_deeds import PRINCIPAL
from builders.waiting import until
from integration.api.conftest import TINY, Api
from luthier_api.domain import View
from luthier_api.services.follow import Followers, FollowService
from luthier_api.store import Repository
from luthier_common.contract import events as f
from luthier_common.contract.topics import Kind
from luthier_common.kit.mongo import Doc

URL = "/v1/fine_tuning/jobs"


async def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def told(api: Api, job_id: str) -> list[Doc]:
    """The rows of a job's event list, once all that was told is in it."""

    async def is_told() -> bool:
        return await api.db["jobs"].find_one({"_id": job_id, "outbox": []}) is not None

    await until(is_told, what="the outbox is empty")
    rows: list[Doc] = await api.db["events"].find({"kind": "job", "thing": job_id}).sort("seq", 1).to_list(None)
    return rows


async def test_a_deleted_job_is_gone_for_every_reader_and_stays_a_cursor(api: Api) -> None:
    sdk, stories = api.sdk(), [await ended_job(api, metadata={"customer": "Ann"}) for _ in range(3)]
    older, gone, newer = (story.id for story in stories)
    assert await delete(api, gone) == {"id": gone, "object": "fine_tuning.job", "deleted": True}
    async with api.http() as http:
        for method, path in (
            *(("GET", tail) for tail in ("", "/events", "/events/stream", "/checkpoints")),
            *(("POST", tail) for tail in ("/cancel", "/pause", "/resume")),
            ("DELETE", ""),
        ):
            await refused(await http.request(method, f"{URL}/{gone}{path}"), 404, "not_found")
        mka1 = f"/api/v1/llm/fine_tuning/jobs/{gone.replace('-', '_')}"
        await refused(await http.get(mka1), 404, "not_found")
        for query in ("", "&status=cancelled", "&metadata[customer]=Ann"):
            listed = (await http.get(f"{URL}?limit=2{query}")).json()["data"]
            assert [job["id"] for job in listed] == [newer, older], query
    assert (await sdk.fine_tuning.jobs.list(after=gone, limit=1)).data[0].id == older
    doc = await stories[1].doc()
    assert (doc["status"], doc["phase"], doc["metadata"]) == ("cancelled", "cancelled", None)
    rows = await told(api, gone)
    assert [row["type"] for row in rows][-2:] == ["JobCancelled", "JobDeleted"]
    assert [row.get("terminal", False) for row in rows][-2:] == [True, False]
    assert list(broken_history(Kind.JOB, await stories[1].doc(), rows)) == []
    assert not (await stories[1].tell(f.JobRestarted(), op_id="restart")).applied


async def test_every_mount_deletes(api: Api) -> None:
    async with api.http() as http:
        for mount, spelled in (("/openai/v1", "ftjob-"), ("/api/v1/llm", "ftjob_")):
            job_id = (await ended_job(api)).id.replace("ftjob-", spelled)
            answer = await http.delete(f"{mount}/fine_tuning/jobs/{job_id}")
            assert answer.json() == {"id": job_id, "object": "fine_tuning.job", "deleted": True}


async def test_a_job_that_has_not_ended_is_refused_and_goes_on(api: Api) -> None:
    stories = [await new_job(api), await new_job(api), await new_job(api)]
    await stories[1].accepted()
    await stories[2].in_training()
    async with api.http() as http:
        for story in stories:
            answer = await http.delete(f"{URL}/{story.id}?delete_model=true")
            await refused(answer, 409, "invalid_state")
            assert answer.headers["x-should-retry"] == "false"
            assert "Cancel it first" in answer.json()["error"]["message"]
            assert (await http.get(f"{URL}/{story.id}")).status_code == 200
            await http.post(f"{URL}/{story.id}/cancel")


async def test_only_who_may_write_jobs_here_deletes_them(api: Api) -> None:
    story = await ended_job(api)
    async with api.http(await api.new_key("admin", project="proj-stranger")) as http:
        await refused(await http.delete(f"{URL}/{story.id}"), 404, "not_found")
    async with api.http(await api.new_key("fine-tuning:read", "models:write")) as http:
        await refused(await http.delete(f"{URL}/{story.id}"), 403, "missing_scope")
    async with api.http(await api.new_key("fine-tuning:write", "fine-tuning:read")) as http:
        answer = await http.delete(f"{URL}/{story.id}?delete_model=true")
        await refused(answer, 403, "missing_scope")
        assert "models:write" in answer.json()["error"]["message"]
        assert (await http.get(f"{URL}/{story.id}")).status_code == 200
        assert (await http.delete(f"{URL}/{story.id}")).status_code == 200


async def test_an_end_user_deletes_their_own_jobs_only(api: Api) -> None:
    body = {"model": TINY, "training_file": (await upload(api)).id}
    async with api.http() as http:
        ann, bob = {"x-on-behalf-of": "ann"}, {"x-on-behalf-of": "bob"}
        job_id = (await http.post(URL, json=body, headers=ann)).json()["id"]
        await http.post(f"{URL}/{job_id}/cancel", headers=ann)
        await refused(await http.delete(f"{URL}/{job_id}", headers=bob), 404, "not_found")
        assert (await http.delete(f"{URL}/{job_id}", headers=ann)).json()["deleted"]
        await refused(await http.get(f"{URL}/{job_id}"), 404, "not_found")


async def test_a_deletion_that_is_asked_for_again_by_the_clients_library_was_done(api: Api) -> None:
    story = await ended_job(api)
    async with api.http() as http:
        first = await http.delete(f"{URL}/{story.id}")
        again = await http.delete(f"{URL}/{story.id}", headers={"x-stainless-retry-count": "1"})
        assert (again.status_code, again.json()) == (200, first.json())
        await refused(await http.delete(f"{URL}/{story.id}"), 404, "not_found")
    assert [row["type"] for row in await told(api, story.id)].count("JobDeleted") == 1


async def test_a_create_makes_a_job_once_and_the_same_body_later_another(api: Api) -> None:
    body = {"model": TINY, "training_file": (await upload(api)).id, "seed": 7}
    keyed = {"idempotency-key": "create-and-delete"}
    async with api.http() as http:
        made = (await http.post(URL, json=body, headers=keyed)).json()
        await http.post(f"{URL}/{made['id']}/cancel")
        await http.delete(f"{URL}/{made['id']}")
        again = (await http.post(URL, json=body, headers=keyed)).json()
        assert (again["id"], again["status"]) == (made["id"], "cancelled"), "the job as it is, or was last"
        await refused(await http.get(f"{URL}/{made['id']}"), 404, "not_found")
        plain = (await http.post(URL, json=body)).json()["id"]
        await http.post(f"{URL}/{plain}/cancel")
        await http.delete(f"{URL}/{plain}")
        fresh = (await http.post(URL, json=body)).json()
        assert fresh["id"] not in (made["id"], plain)
        assert fresh["status"] == "validating_files"
        retried = await http.post(URL, json=body, headers={"x-stainless-retry-count": "1"})
        assert retried.json()["id"] == fresh["id"]
        await http.post(f"{URL}/{fresh['id']}/cancel")


async def test_a_stream_that_is_open_ends_with_its_job(api: Api) -> None:
    story = await ended_job(api)
    await delete(api, story.id)
    await told(api, story.id)

    async def may_still() -> bool:
        return True

    repository = Repository(api.db, PRINCIPAL, "req-test")
    following = FollowService(repository, Followers(), View(), may_still, most=3, heartbeat_s=1)
    said = b"".join([part async for part in following.follow(story.id, None)]).decode()
    assert said.rstrip().endswith('event: done\ndata: {"object":"fine_tuning.job.events.done","status":null}')


async def test_nothing_of_a_deleted_job_lives_on_in_an_answer_kept_for_its_key(api: Api) -> None:
    file, secret, headers = await upload(api), "Ann Example", {"idempotency-key": "made and deleted"}
    body = {"model": TINY, "training_file": file.id, "metadata": {"customer": secret}}
    async with api.http() as http:
        made = (await http.post(URL, json=body, headers=headers)).json()
        again = await http.post(URL, json=body, headers=headers)
        assert (again.json(), again.headers["idempotent-replayed"]) == (made, "true")
        await http.post(f"{URL}/{made['id']}/cancel")
        await delete(api, made["id"])
        after = await http.post(URL, json=body, headers=headers)
    assert (after.status_code, after.json()["id"], after.json()["metadata"]) == (200, made["id"], None)
    assert secret not in str(await api.db["idempotency"].find({}).to_list(None))
