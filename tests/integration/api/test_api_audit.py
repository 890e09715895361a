"""The audit log: every changing call has its row before its answer is out, and a changed row is found."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from builders.waiting import until
from integration.api.conftest import TINY, Api, run_api
from luthier_api.audit import verify

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
URL = "/v1/organization/audit_logs"
DATABASE = "test_api_audit"


@pytest.fixture(scope="module")
async def audited(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Api]:
    home: Path = tmp_path_factory.mktemp("audit")
    faults = {"LUTHIER_FAILPOINTS": "audit.before_write=raise*2", "LUTHIER_FAILPOINTS_LOG": str(home / "faults")}
    async with run_api(mongo_url, kafka_url, home, free_port(), DATABASE, faults) as api:
        yield api


async def test_a_call_is_answered_though_its_row_must_wait(audited: Api) -> None:
    file = await audited.sdk().files.create(file=("first.jsonl", LINE), purpose="fine-tune")

    async def is_there() -> bool:
        return await audited.db["audit_log"].count_documents({"operation": "create_file"}) == 1

    await until(is_there)
    assert file.id
    assert (await verify(audited.db)).broken is None


async def test_changing_calls_are_listed_newest_first_and_reads_are_not(audited: Api) -> None:
    sdk = audited.sdk()
    file = await sdk.files.create(file=("secret-name.jsonl", LINE), purpose="fine-tune")
    job = await sdk.fine_tuning.jobs.create(
        model=TINY, training_file=file.id, suffix="private-suffix", extra_headers={"X-On-Behalf-Of": "ada"}
    )
    cancelled = await sdk.fine_tuning.jobs.with_raw_response.cancel(job.id, extra_headers={"X-On-Behalf-Of": "ada"})
    reader = await audited.new_key("files:read")
    async with audited.http() as http, audited.http(reader) as other:
        refused = await other.delete(f"/v1/files/{file.id}")
        await http.get(URL)
        rows = (await http.get(f"{URL}?limit=4")).json()["data"]
        pages, after = [], ""
        while True:
            page = (await http.get(f"{URL}?limit=2{after}")).json()
            pages += page["data"]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        foreign = await http.get(f"{URL}?after=nobody/1")
        denied = await other.get(URL)
    assert [row["operation"] for row in rows] == [
        "delete_file",
        "cancel_fine_tuning_job",
        "create_fine_tuning_job",
        "create_file",
    ]
    delete, cancel, create, _ = rows
    assert (delete["status"], delete["code"], delete["thing"]) == (403, "missing_scope", file.id)
    assert delete["actor"]["api_key"]["id"] == f"key_{reader.split('-')[2]}"
    assert (cancel["status"], cancel["code"], cancel["thing"], cancel["end_user"]) == (200, None, job.id, "ada")
    assert cancel["request_id"] == cancelled.headers["x-request-id"]
    assert (create["project"]["id"], create["type"]) == ("proj-default", "create_fine_tuning_job")
    assert [row["id"] for row in pages[:4]] == [row["id"] for row in rows]
    assert len({row["id"] for row in pages}) == len(pages)
    assert (refused.status_code, foreign.status_code, denied.status_code) == (403, 400, 403)
    async for row in audited.db["audit_log"].find({}):
        assert not any(secret in str(row) for secret in ("secret-name", "private-suffix", "sk-lut-", "messages"))


async def test_another_organisation_sees_nothing_of_it(audited: Api) -> None:
    async with audited.http(await audited.new_key("admin", org="org-other", project="proj-other")) as http:
        answer = await http.get(URL)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == []


async def test_calls_with_bad_keys_are_recorded_in_bounded_number(audited: Api) -> None:
    async with audited.http("nothing") as http:
        answers = await asyncio.gather(*(http.delete("/v1/files/file-1") for _ in range(200)))
    assert {answer.status_code for answer in answers} == {401}
    refused = await audited.db["audit_log"].count_documents({"code": "invalid_api_key"})
    assert 60 <= refused <= 120


async def test_rows_of_calls_at_once_are_written_together_and_stay_a_chain(audited: Api) -> None:
    before = await audited.db["audit_log"].count_documents({})
    async with audited.http() as http:
        await asyncio.gather(*(http.delete("/v1/files/file-1") for _ in range(100)))
    assert await audited.db["audit_log"].count_documents({}) == before + 100
    found = await verify(audited.db)
    assert (found.broken, found.num_chains, found.num_rows) == (None, 1, before + 100)


async def test_the_command_names_the_row_that_was_changed(audited: Api, mongo_url: str) -> None:
    async def command() -> tuple[int, str]:
        env = {
            "LUTHIER_HOME": str(audited.home),
            "LUTHIER_MONGO_URL": mongo_url,
            "LUTHIER_MONGO_DATABASE": DATABASE,
            "LUTHIER_KAFKA_URL": "127.0.0.1:1",
            "LUTHIER_OBJECTS_URL": "file:///nowhere",
        }
        arguments = (sys.executable, "-m", "luthier_api.admin", "audit", "verify")
        process = await asyncio.create_subprocess_exec(
            *arguments, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    status, said = await command()
    assert status == 0, said
    row = await audited.db["audit_log"].find_one({"operation": "create_file"})
    assert row is not None
    await audited.db["audit_log"].update_one({"_id": row["_id"]}, {"$set": {"org": "org-other"}})
    status, said = await command()
    assert (status, row["_id"] in said) == (1, True)


async def test_a_row_says_from_where_and_believes_no_header_of_strangers(audited: Api) -> None:
    assert await _address_of(audited, "203.0.113.9") == "127.0.0.1"


async def test_behind_a_named_proxy_a_row_says_whom_the_proxy_saw(
    mongo_url: str, kafka_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """What the client wrote into the header itself stands before it."""
    env = {"LUTHIER_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1"}
    async with run_api(mongo_url, kafka_url, tmp_path, free_port(), "test_api_proxied", env) as api:
        assert await _address_of(api, "198.51.100.1, 203.0.113.9, 10.1.2.3") == "203.0.113.9"
        assert await _address_of(api, None) == "127.0.0.1"
        assert (await verify(api.db)).broken is None


async def _address_of(api: Api, forwarded_for: str | None) -> str:
    headers = {} if forwarded_for is None else {"x-forwarded-for": forwarded_for}
    async with api.http() as http:
        assert (await http.delete("/v1/files/file-none", headers=headers)).status_code == 404
        [row] = (await http.get(f"{URL}?limit=1")).json()["data"]
    assert row["operation"] == "delete_file"
    return str(row["address"])
