"""What a hostile client tries: heads without end, headers that name nobody, secrets where ids belong."""

import asyncio
from pathlib import Path

import httpx2
import openai
import pytest

from builders.jobs import JobStory
from integration.api.conftest import MAX_QUEUED, TINY, Api

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'


async def _answer_to(api: Api, *pieces: bytes) -> bytes:
    """What the server says to raw bytes, until it ends the connection."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("piece", [b"x" * 8192, b"x-more: " + b"y" * 1000 + b"\r\n"], ids=["one", "many"])
async def test_a_head_without_end_is_cut_off(api: Api, piece: bytes) -> None:
    answer = await _answer_to(api, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-long: a\r\n", *([piece] * 4000))
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""
    async with api.http() as http:
        assert (await http.get("/v1/models")).status_code == 200


async def test_trailers_without_end_are_cut_off_and_long_bodies_are_not(api: Api) -> None:
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    answer = await _answer_to(api, head, *([b"x-more: " + b"y" * 1000 + b"\r\n"] * 4000))
    assert b"401" in answer or answer == b""
    made = await api.sdk().files.create(file=("long.jsonl", LINE * 30_000), purpose="fine-tune")
    assert made.bytes == len(LINE) * 30_000


@pytest.mark.parametrize("values", [[""], ["\u3000"], [b"Jos\xe9"], ["ann", "bob"]])
async def test_a_call_on_behalf_of_nobody_in_particular_is_refused(api: Api, values: list[str | bytes]) -> None:
    headers = [(b"X-On-Behalf-Of", each if isinstance(each, bytes) else each.encode()) for each in values]
    async with api.http() as http:
        answer = await http.get("/v1/files", headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "X-On-Behalf-Of"


async def test_a_key_in_the_place_of_an_id_is_not_written_down(api: Api) -> None:
    secret = await api.new_key("files:read")
    async with api.http() as http:
        for place in ("admin_api_keys", "projects/proj-default/api_keys"):
            refused = await http.delete(f"/v1/organization/{place}/{secret}")
            assert refused.status_code == 404
    rows = await api.db["audit_log"].find({"thing": {"$regex": secret.split("-")[2]}}).to_list(10)
    assert [row["thing"].startswith("proj-default/") for row in rows] == [False, True]
    value = secret.split("-", 3)[3]
    for name in await api.db.list_collection_names():
        async for document in api.db[name].find({}):
            assert value not in str(document), name
    assert value not in (Path(api.home) / "log").read_text()


async def test_end_users_do_not_widen_the_limit_of_queued_jobs(api: Api) -> None:
    org, project = "org-many-users", "proj-many-users"
    key = await api.new_key("admin", project=project, org=org)
    sdk = api.sdk(key)
    file = await sdk.files.create(file=("queue.jsonl", LINE * 20), purpose="fine-tune")
    waiting = {"org": org, "project": project, "phase": "waiting", "end_user": "ann"}
    await api.db["jobs"].insert_many([{"_id": f"ftjob-queue{number}", **waiting} for number in range(MAX_QUEUED)])
    async with api.http(key) as http:
        body = {"model": TINY, "training_file": file.id}
        refused = await http.post("/v1/fine_tuning/jobs", json=body, headers={"x-on-behalf-of": "bob"})
    await api.db["jobs"].delete_many(waiting)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_queued_jobs")


async def test_paused_jobs_do_not_come_back_beyond_the_limit_of_queued_jobs(api: Api) -> None:
    org, project = "org-paused", "proj-paused"
    key = await api.new_key("admin", project=project, org=org)
    sdk = api.sdk(key)
    file = await sdk.files.create(file=("queue.jsonl", LINE * 20), purpose="fine-tune")
    waiting = {"org": org, "project": project, "phase": "waiting"}
    await api.db["jobs"].insert_many([{"_id": f"ftjob-back{number}", **waiting} for number in range(1, MAX_QUEUED)])
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    await JobStory(api.db, job.id).accepted()
    await sdk.fine_tuning.jobs.pause(job.id)
    await api.db["jobs"].insert_one({"_id": "ftjob-back0", **waiting})
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.fine_tuning.jobs.resume(job.id)
    assert caught.value.code == "too_many_queued_jobs"
    await api.db["jobs"].delete_many(waiting)
    assert (await sdk.fine_tuning.jobs.resume(job.id)).status == "queued"


async def test_a_filter_by_more_pairs_than_a_job_can_have_is_refused(api: Api) -> None:
    query = "&".join(f"metadata[k{number}]=v" for number in range(17))
    async with api.http() as http:
        refused: httpx2.Response = await http.get(f"/v1/fine_tuning/jobs?{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_models_are_not_lent_on_behalf_of_an_end_user(api: Api, method: str) -> None:
    url = "/v1/fine_tuning/checkpoints/ft:tiny-base:x::0/permissions"
    body = {"json": {"project_ids": ["proj-default"]}} if method == "POST" else {}
    async with api.http() as http:
        refused = await http.request(method, url, headers={"x-on-behalf-of": "ann"}, **body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "end_user_not_allowed")
