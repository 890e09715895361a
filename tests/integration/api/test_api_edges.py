"""What stands around every route: keys, scopes, walls, errors, ids of requests, the description, readiness."""

import asyncio
import itertools
import stat
from typing import Any

import httpx2
import openai
import pytest

from builders.waiting import until
from integration.api.conftest import TINY, Api
from luthier_common.kit.presence import announce, leave

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
PUBLIC = {"/healthz", "/readyz", "/docs", "/docs/openapi.json", "/docs/{path}"}
ENVELOPE = {"message", "type", "param", "code", "request_id"}


async def _operations(api: Api) -> list[tuple[str, str, dict[str, Any]]]:
    async with api.http() as http:
        spec = (await http.get("/docs/openapi.json")).json()
    assert spec["openapi"].startswith("3.1")
    return [
        (method.upper(), path, operation)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
        if path not in PUBLIC
    ]


async def test_every_route_refuses_no_key_a_wrong_key_a_revoked_key_and_a_key_without_scope(api: Api) -> None:
    revoked = await api.new_key("admin")
    await api.db["api_keys"].update_one({"_id": revoked.split("-")[2]}, {"$set": {"revoked": True}})
    powerless = await api.new_key()
    wrong = api.key[:-4] + "AAAA"
    operations = await _operations(api)
    assert len(operations) >= 15
    bad = ("", wrong, "sk-lut-x", revoked)
    cases = [*((key, 401, "invalid_api_key") for key in bad), (powerless, 403, "missing_scope")]
    async with httpx2.AsyncClient(base_url=api.url) as http:
        for (method, path, _), (key, status, code) in itertools.product(operations, cases):
            url = path.replace("{", "").replace("}", "")
            answer = await http.request(method, url, headers={"authorization": f"Bearer {key}"} if key else {})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (method, url, key[:10])
            assert answer.headers["x-request-id"].startswith("req_")


def _told(answer: httpx2.Response, thing: str) -> dict[str, Any]:
    """The error without what must differ: the id that was asked for, and the request's own."""
    return {name: str(text).replace(thing, "") for name, text in answer.json()["error"].items() if name != "request_id"}


async def test_another_projects_things_are_as_unknown_as_no_things(api: Api) -> None:
    sdk = api.sdk()
    file = await sdk.files.create(file=("mine.jsonl", LINE), purpose="fine-tune")
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    for where in ({"project": "proj-other"}, {"org": "org-other"}):
        key = await api.new_key("admin", **where)
        async with api.http(key) as http:
            for method, path in (
                ("GET", "/v1/files/{}"),
                ("GET", "/v1/files/{}/content"),
                ("DELETE", "/v1/files/{}"),
                ("GET", "/v1/fine_tuning/jobs/{}"),
                ("GET", "/v1/fine_tuning/jobs/{}/events"),
                ("GET", "/v1/fine_tuning/jobs/{}/checkpoints"),
                ("POST", "/v1/fine_tuning/jobs/{}/cancel"),
                ("POST", "/v1/fine_tuning/jobs/{}/pause"),
                ("POST", "/v1/fine_tuning/jobs/{}/resume"),
            ):
                real = file.id if "files" in path else job.id
                unknown = real[:-4] + "ffff"
                foreign, nothing = [await http.request(method, path.format(thing)) for thing in (real, unknown)]
                assert foreign.status_code == nothing.status_code == 404
                assert _told(foreign, real) == _told(nothing, unknown)
            refused = await http.post("/v1/fine_tuning/jobs", json={"model": TINY, "training_file": file.id})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "file_not_found")
            assert (await http.get("/v1/files")).json()["data"] == []
            assert (await http.get("/v1/fine_tuning/jobs")).json()["data"] == []
    assert (await sdk.fine_tuning.jobs.retrieve(job.id)).status == "validating_files"


async def test_a_key_can_do_what_its_scopes_say(api: Api) -> None:
    reader = api.sdk(await api.new_key("files:read"))
    await reader.files.list(limit=1)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await reader.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    assert "files:write" in caught.value.message


async def test_a_revoked_key_is_refused_soon(api: Api) -> None:
    key = await api.new_key("admin")
    sdk = api.sdk(key)
    await sdk.models.list()
    await api.db["api_keys"].update_one({"_id": key.split("-")[2]}, {"$set": {"revoked": True}})
    async with asyncio.timeout(5), api.http(key) as http:
        while (await http.get("/v1/models")).status_code != 401:
            await asyncio.sleep(0.05)


async def test_secrets_lie_in_files_of_their_owner_and_never_in_the_database_or_log(api: Api) -> None:
    for name in ("admin-key", "pepper"):
        assert stat.S_IMODE((api.home / name).stat().st_mode) == 0o600
    rows = str(await api.db["api_keys"].find({}).to_list(None))
    assert api.key not in rows
    assert api.key.split("-", 3)[3] not in rows + (api.home / "log").read_text()


async def test_unknown_addresses_and_methods_answer_in_the_envelope(api: Api) -> None:
    async with api.http() as http:
        nowhere = await http.get("/v1/nowhere")
        wrong_method = await http.put("/v1/files")
        no_delete = await http.delete("/v1/fine_tuning/jobs/ftjob-1/events")
        mine = await http.get("/v1/models", headers={"x-request-id": "mine"})
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong_method.status_code, wrong_method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert (no_delete.status_code, no_delete.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "GET" in no_delete.headers["allow"]
    assert set(nowhere.json()["error"]) == set(wrong_method.json()["error"]) == ENVELOPE
    ids = {answer.headers["x-request-id"] for answer in (nowhere, wrong_method, mine)}
    assert len(ids) == 3
    assert "mine" not in ids


@pytest.mark.parametrize("body", ["null", "", "[]", '"text"'])
async def test_a_body_that_is_no_object_is_called_so(api: Api, body: str) -> None:
    async with api.http() as http:
        http.headers["content-type"] = "application/json"
        for path in ("/v1/fine_tuning/jobs", "/v1/chat/completions"):
            error = (await http.post(path, content=body)).json()["error"]
            assert error["param"] is None
            assert error["message"] == "The body is wrong: must be an object"


async def test_a_client_of_azures_v1_address(api: Api) -> None:
    for version, status in (("preview", 200), ("v1", 200), ("2024-10-21", 400)):
        async with api.http() as http:
            answer = await http.get("/openai/v1/models", params={"api-version": version})
            elsewhere = await http.get("/v1/models", params={"api-version": version})
        assert (answer.status_code, elsewhere.status_code) == (status, 400)
        assert elsewhere.json()["error"]["param"] == "api-version"


async def test_the_page_of_the_description_needs_no_other_server(api: Api) -> None:
    async with api.http() as http:
        page = await http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "https://" not in page.text
    assert "http://" not in page.text
    ids = [operation["operationId"] for _, _, operation in await _operations(api)]
    assert len(set(ids)) == len(ids)
    assert "create_fine_tuning_job" in ids
    for _, path, operation in await _operations(api):
        for status in ("400", "401", "403", "429", "503"):
            assert operation["responses"][status] == {"$ref": f"#/components/responses/Error{status}"}, path


async def test_readyz_names_what_is_missing(api: Api) -> None:
    wanted = {"file-validator", "scheduler", "trainer", "inference"}
    no_registry = " is not in the catalogue yet: no registry is there"
    async with api.http() as http:

        async def names_just_these() -> bool:
            answer = await http.get("/readyz")
            assert answer.status_code == 503
            missing = answer.json()["missing"]
            return set(missing) == wanted and missing["inference"].endswith(no_registry)

        await until(names_just_these, what="only these are missing")
        healthy = await http.get("/healthz")
    assert healthy.status_code == 200


async def test_readyz_says_by_a_code_why_the_base_is_not_there(api: Api) -> None:
    async def why() -> str:
        async with api.http() as http:
            return str((await http.get("/readyz")).json()["missing"]["inference"]).partition("yet: ")[2]

    async def says(text: str) -> bool:
        return await why() == text

    try:
        await announce(api.db, "registry", "one", trouble="io_error")
        refused = "the registry cannot prepare it (io_error); its log says more"
        await until(lambda: says(refused), within_s=10, what="the code")
        await announce(api.db, "registry", "one")
        await until(lambda: says("a registry is preparing it"), within_s=10, what="hope")
    finally:
        await leave(api.db, "registry", "one")
