"""A request that is sent again is done once: with an Idempotency-Key, and by the clients' own retries without one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from meetkai_mka1 import SDK as Mka1
from openai import AsyncOpenAI
from openai.types import FileObject

from builders.engines import Engine, joined
from builders.lossy_proxy import LossyProxy, lossy_proxy
from builders.waiting import until
from integration.api.conftest import TINY, Api, run_api
from luthier_api.around.connections import REPEATS_AFTER_S

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
URL = "/v1/fine_tuning/jobs"
REPLAYED = "idempotent-replayed"
pytestmark = pytest.mark.filterwarnings("ignore:.*DEPRECATED:DeprecationWarning")
"""The MKA1 client says so of all its fine-tuning methods."""


@pytest.fixture(scope="session")
async def file(api: Api) -> FileObject:
    return await api.sdk().files.create(file=("train-repeats.jsonl", LINE * 20), purpose="fine-tune")


@pytest.fixture
async def proxy(api: Api) -> AsyncIterator[LossyProxy]:
    async with lossy_proxy(urlsplit(api.url).port or 0) as proxy:
        yield proxy


def make_body(file_id: str, suffix: str) -> dict[str, Any]:
    return {"model": TINY, "training_file": file_id, "suffix": suffix}


async def count_jobs(api: Api, suffix: str) -> int:
    return await api.db["jobs"].count_documents({"spec.suffix": suffix})


async def test_a_key_gets_the_first_answer_again(api: Api, file: FileObject) -> None:
    body, headers = make_body(file.id, "keyed"), {"idempotency-key": "keyed-1"}
    async with api.http() as http:
        first = await http.post(URL, json=body, headers=headers)
        again = await http.post(URL, json=body, headers=headers)
        reused = await http.post(URL, json=body | {"seed": 1}, headers=headers)
        mka1 = await http.post(f"/api/v1/llm{URL[3:]}", json=body, headers=headers)
        long = await http.post(URL, json=body, headers={"idempotency-key": "k" * 256})
        refused = [await http.post(URL, json={"model": TINY}, headers={"idempotency-key": "keyed-2"}) for _ in range(2)]
    assert (first.status_code, REPLAYED in first.headers) == (200, False), first.text
    assert (again.status_code, again.headers[REPLAYED], again.content) == (200, "true", first.content)
    assert (reused.status_code, reused.json()["error"]["code"]) == (400, "idempotency_key_reused")
    assert (mka1.status_code, REPLAYED in mka1.headers) == (200, False)
    assert (long.status_code, long.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert [answer.status_code for answer in refused] == [400, 400]
    assert refused[1].headers[REPLAYED] == "true"
    assert await count_jobs(api, "keyed") == 2


async def test_two_at_once_with_one_key_make_one_job(api: Api, file: FileObject) -> None:
    body = make_body(file.id, "at-once")
    async with api.http() as http:
        answers = await asyncio.gather(
            *(http.post(URL, json=body, headers={"idempotency-key": "at-once"}) for _ in range(5))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await count_jobs(api, "at-once") == 1


async def test_a_key_of_another_key_or_end_user_is_another(api: Api, file: FileObject) -> None:
    body, headers = make_body(file.id, "not-mine"), {"idempotency-key": "shared"}
    async with api.http() as http, api.http(await api.new_key("admin")) as other:
        mine = await http.post(URL, json=body, headers=headers)
        theirs = await other.post(URL, json=body, headers=headers)
        for_user = await http.post(URL, json=body, headers=headers | {"x-on-behalf-of": "ada"})
    assert len({answer.json()["id"] for answer in (mine, theirs, for_user)}) == 3


async def test_an_upload_with_a_key_is_stored_once_whatever_its_boundary(api: Api) -> None:
    sdk = api.sdk()
    headers = {"Idempotency-Key": "upload-1"}
    first = await sdk.files.create(file=("boundary.jsonl", LINE * 9), purpose="fine-tune", extra_headers=headers)
    again = await sdk.files.with_raw_response.create(
        file=("boundary.jsonl", LINE * 9), purpose="fine-tune", extra_headers=headers
    )
    assert again.headers[REPLAYED] == "true"
    assert again.parse().id == first.id
    async with api.http() as http:
        other = await http.post(
            "/v1/files",
            files={"file": ("boundary.jsonl", LINE * 8)},
            data={"purpose": "fine-tune"},
            headers=headers,
        )
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
    assert await api.db["files"].count_documents({"filename": "boundary.jsonl"}) == 1


async def test_an_answer_with_a_secret_is_not_kept(api: Api) -> None:
    url = "/v1/organization/admin_api_keys"
    async with api.http() as http:
        made = [await http.post(url, json={"name": "once"}, headers={"idempotency-key": "secret-1"}) for _ in range(2)]
    assert [answer.status_code for answer in made] == [200, 409], made[0].text
    assert made[1].json()["error"]["code"] == "idempotency_answer_not_kept"
    assert made[1].headers["x-should-retry"] == "false"
    async for row in api.db["idempotency"].find({}):
        assert b"sk-lut-" not in (row.get("body") or b"")


async def test_what_a_model_said_is_made_once_however_long_it_is(api: Api) -> None:
    engine, headers = Engine("engine-keyed", pieces=("x" * 100_000,)), {"idempotency-key": "a long answer"}
    body = {"model": TINY, "messages": [{"role": "user", "content": "hi"}]}
    async with joined(api.db, engine, TINY), api.http() as http:
        first = await http.post("/v1/chat/completions", json=body, headers=headers)
        again = await http.post("/v1/chat/completions", json=body, headers=headers)
    assert (first.status_code, len(first.content) > 100_000) == (200, True)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_answer_not_kept")
    assert len(engine.asked) == 1


async def test_without_a_key_only_a_repetition_finds_the_first_job(api: Api, file: FileObject) -> None:
    body = make_body(file.id, "guarded")
    async with api.http() as http:
        first = (await http.post(URL, json=body)).json()["id"]
        retried = (await http.post(URL, json=body, headers={"x-stainless-retry-count": "1"})).json()["id"]
        meant = (await http.post(URL, json=body)).json()["id"]
    assert first == retried != meant
    assert await count_jobs(api, "guarded") == 2


async def test_a_retry_of_a_request_that_never_came_is_no_repetition_of_an_older_one(
    api: Api, file: FileObject
) -> None:
    body, retried = make_body(file.id, "older"), {"x-stainless-retry-count": "1"}

    async def an_answer_ago(http: httpx2.AsyncClient, seconds: int, **headers: str) -> bool:
        """Whether a retry finds the job that was made and answered so many seconds ago."""
        first = (await http.post(URL, json=body)).json()["id"]
        [row] = await until(lambda: api.db["idempotency"].find({"core": first[6:], "is_answered": True}).to_list(1))
        sent_at = row["sent_at"] - timedelta(seconds=seconds)
        await api.db["idempotency"].update_one({"_id": row["_id"]}, {"$set": {"sent_at": sent_at}})
        answer = await http.post(URL, json=body, headers=retried | headers)
        return bool(answer.json()["id"] == first)

    patience = {"x-stainless-read-timeout": "60.0"}
    async with api.http() as http:
        assert await an_answer_ago(http, 10)
        assert not await an_answer_ago(http, 50)
        assert not await an_answer_ago(http, 50, **patience)
        assert await an_answer_ago(http, 62, **patience)
        assert not await an_answer_ago(http, 122, **patience)
        first = (await http.post(URL, json=body)).json()["id"]
        await until(lambda: api.db["idempotency"].find_one({"core": first[6:], "is_answered": True}))
        unheard = {"$set": {"is_answered": False}}
        await api.db["idempotency"].update_one({"core": first[6:]}, unheard)
        assert (await http.post(URL, json=body, headers=retried)).json()["id"] == first


async def test_a_first_job_is_known_for_as_long_as_its_client_waits_for_an_answer(api: Api, file: FileObject) -> None:
    body = make_body(file.id, "patient")
    for patience, kept_s in (
        ({}, 600),
        ({"x-stainless-read-timeout": "600"}, 630),
        ({"x-stainless-timeout": "9"}, 600),
    ):
        async with api.http() as http:
            first = (await http.post(URL, json=body, headers=patience)).json()["id"]
        row = await api.db["idempotency"].find_one({"core": first[6:]})
        assert row is not None
        assert row["expires_at"] - row["sent_at"] == timedelta(seconds=kept_s)


async def test_a_body_whose_first_answer_could_not_be_sent_is_a_repetition(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Its client leaves when the job is made and the answer is still to come."""
    slow = {"LUTHIER_FAILPOINTS": "jobs.after_create=delay:3*1", "LUTHIER_FAILPOINTS_LOG": str(tmp_path / "faults")}
    async with run_api(mongo_url, kafka_url, tmp_path, free_port(), "test_api_left", slow) as api, api.http() as http:
        file = await api.sdk().files.create(file=("a.jsonl", LINE * 20), purpose="fine-tune")
        body = make_body(file.id, "dropped")
        first = asyncio.create_task(http.post(URL, json=body))
        await until(lambda: count_jobs(api, "dropped"), what="the job is made")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        again = (await http.post(URL, json=body)).json()["id"]
        assert await count_jobs(api, "dropped") == 1
        meant = (await http.post(URL, json=body)).json()["id"]
    assert again != meant


async def test_the_openai_client_makes_one_job_though_answers_are_lost(
    api: Api, proxy: LossyProxy, file: FileObject
) -> None:
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=api.key, max_retries=3) as sdk:
        for loss in ("swallow", "cut"):
            proxy.lose(2, loss)
            await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id, suffix=f"storm-{loss}")
            assert proxy.num_lost == 2
            assert await count_jobs(api, f"storm-{loss}") == 1


@pytest.mark.parametrize("loss", ["cut", "swallow"])
async def test_the_mka1_client_makes_one_job_though_answers_are_lost(
    api: Api, proxy: LossyProxy, file: FileObject, loss: Any
) -> None:
    proxy.lose(2, loss)
    suffix = f"mka1-{loss}"

    def create() -> str:
        with Mka1(bearer_auth=f"Bearer {api.key}", server_url=f"http://127.0.0.1:{proxy.port}") as sdk:
            job = sdk.llm.fine_tuning.create(model=TINY, training_file=file.id, suffix=suffix)
            return str(job.id)

    job_id = await asyncio.to_thread(create)
    assert proxy.num_lost == 2
    assert await count_jobs(api, suffix) == 1
    assert (await api.sdk().fine_tuning.jobs.retrieve(job_id)).id == job_id.replace("_", "-")


async def test_two_jobs_that_a_proxy_asks_for_over_connections_of_their_own_are_two(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """It ends each behind the answer: that says nothing of whether its client has it."""
    env = {"LUTHIER_TRUSTED_PROXIES": "127.0.0.1"}
    async with run_api(mongo_url, kafka_url, tmp_path, free_port(), "test_api_proxied", env) as api, api.http() as http:
        http.headers |= {"user-agent": "speakeasy-sdk/python", "connection": "close"}
        file = await api.sdk().files.create(file=("a.jsonl", LINE * 20), purpose="fine-tune")
        for _ in range(2):
            assert (await http.post(URL, json=make_body(file.id, "twice"))).status_code == 200
            await asyncio.sleep(2 * REPEATS_AFTER_S)  # that client waits longer before it sends a request again
        assert await count_jobs(api, "twice") == 2


async def test_server_errors_and_a_killed_server_make_one_job(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, database = free_port(), "test_api_repeats"
    faults = "repeats.after_reserve=raise*1;jobs.after_create=raise*2;idempotency.after_take=kill*1"
    env = {"LUTHIER_FAILPOINTS": faults, "LUTHIER_FAILPOINTS_LOG": str(tmp_path / "faults")}
    async with run_api(mongo_url, kafka_url, tmp_path, port, database, env) as api:
        sdk = api.sdk(max_retries=8)
        file = await sdk.files.create(file=("a.jsonl", LINE * 20), purpose="fine-tune")
        await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id, suffix="faulty")
        assert await count_jobs(api, "faulty") == 1

        def create() -> str:
            with Mka1(bearer_auth=f"Bearer {api.key}", server_url=api.url) as mka1:
                job = mka1.llm.fine_tuning.create(model=TINY, training_file=file.id, suffix="faulty-2")
                return str(job.id)

        await asyncio.to_thread(create)
        assert await count_jobs(api, "faulty-2") == 1
        assert (tmp_path / "faults").read_text().count(" raise ") == 3
        keyed = sdk.fine_tuning.jobs.create(
            model=TINY, training_file=file.id, suffix="killed", extra_headers={"Idempotency-Key": "killed"}
        )
        creating = asyncio.create_task(keyed)
        await until(lambda: _is_down(api.url))
        async with run_api(mongo_url, kafka_url, tmp_path, port, database, {}) as restarted:
            job = await creating
            assert await count_jobs(restarted, "killed") == 1
            assert (await restarted.sdk().fine_tuning.jobs.retrieve(job.id)).id == job.id


async def test_a_server_killed_between_reserving_and_making_makes_one_job(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, database = free_port(), "test_api_killed"
    faults = "journal.after_create=raise*1;jobs.before_create=kill*1"
    env = {"LUTHIER_FAILPOINTS": faults, "LUTHIER_FAILPOINTS_LOG": str(tmp_path / "faults")}
    async with run_api(mongo_url, kafka_url, tmp_path, port, database, env) as api:
        file = await api.sdk(max_retries=2).files.create(
            file=("a.jsonl", LINE * 20), purpose="fine-tune", extra_headers={"Idempotency-Key": "one-file"}
        )
        assert (tmp_path / "faults").read_text().count("journal.after_create raise") == 1
        assert [await api.db[name].count_documents({}) for name in ("files", "objects")] == [1, 1]
        body = json.dumps(make_body(file.id, "half")).encode()
        async with api.http() as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post(URL, content=body, headers={"content-type": "application/json"})
        [reserved] = await api.db["idempotency"].find({"state": {"$exists": False}}).to_list(2)
        async with run_api(mongo_url, kafka_url, tmp_path, port, database, {}) as restarted:
            async with restarted.http() as http:
                answer = await http.post(URL, content=body, headers={"content-type": "application/json"})
            assert answer.json()["id"] == f"ftjob-{reserved['core']}"
            assert await count_jobs(restarted, "half") == 1


async def _is_down(url: str) -> bool:
    async with httpx2.AsyncClient() as http:
        try:
            await http.get(f"{url}/healthz")
        except httpx2.HTTPError:
            return True
    return False
