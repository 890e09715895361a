"""Every route of the OpenAPI document, asked for somebody else's things: never a byte of them, never a hint of them."""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from integration.api.conftest import TINY, Api

LINE = b'{"messages":[{"role":"user","content":"a word of mine"},{"role":"assistant","content":"another"}]}\n'
OWNER = "proj-walls"
PUBLIC = {"/healthz", "/readyz"}
BODIES: dict[str, Any] = {
    "create_fine_tuning_job": {"model": TINY, "training_file": "{file_id}"},
    "validate_fine_tuning_job": {"model": TINY, "training_file": "{file_id}"},
    "create_chat_completion": {"model": "{model}", "messages": [{"role": "user", "content": "hi"}]},
    "create_response": {"model": "{model}", "input": "hi", "previous_response_id": "{response_id}"},
    "complete_upload": {"part_ids": ["{part_id}"]},
    "create_checkpoint_permission": {"project_ids": [OWNER]},
}
NOT_WALLED_BY_PROJECT = {"base"}


@pytest.fixture(scope="session")
async def mine(api: Api) -> AsyncIterator[dict[str, str]]:
    """One thing of every kind, all of one project, by the path parameters that name them."""
    key = await api.new_key("admin", project=OWNER)
    await make_project(api, OWNER)
    sdk = api.sdk(key)
    file = await sdk.files.create(file=("mine.jsonl", LINE * 12), purpose="fine-tune")
    job = await sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id, suffix="walled")
    upload = await sdk.uploads.create(bytes=4, filename="u.jsonl", mime_type="text/plain", purpose="fine-tune")
    part = await sdk.uploads.parts.create(upload.id, data=b"abcd")
    response = {"_id": "resp_" + "0" * 24, "org": "org-default", "project": OWNER, "end_user": None, "text": "mine"}
    await api.db["responses"].insert_one(response)
    yield {
        "file_id": file.id,
        "job_id": job.id,
        "upload_id": upload.id,
        "part_id": part.id,
        "response_id": response["_id"],
        "model": f"ft:{TINY}:default:walled:{job.id[-12:]}",
        "checkpoint": f"ft:{TINY}:default:walled:{job.id[-12:]}:ckpt-step-2",
    }
    await api.db["responses"].delete_one({"_id": response["_id"]})


async def make_project(api: Api, project: str, org: str = "org-default") -> None:
    """As the administration makes them, with an id of our choice."""
    now = datetime.now(UTC)
    made = {"name": project, "created_at": now}
    await api.db["orgs"].update_one({"_id": org}, {"$setOnInsert": {"name": org, "created_at": now}}, upsert=True)
    await api.db["projects"].update_one({"_id": project}, {"$setOnInsert": made | {"org": org}}, upsert=True)


async def operations(api: Api) -> list[tuple[str, str, str]]:
    async with api.http() as http:
        spec = (await http.get("/docs/openapi.json")).json()
    return [
        (operation["operationId"], method.upper(), path)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
        if path not in PUBLIC
    ]


def filled(text: str, things: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: things.get(match[1], "x" * 24), text)


def unknown(things: dict[str, str]) -> dict[str, str]:
    """Ids of the same form that name nothing."""
    return {name: re.sub(r"[0-9a-f]{4}(?=$|:)", "ffee", text, count=1) for name, text in things.items()}


async def ask(http: httpx2.AsyncClient, operation: tuple[str, str, str], things: dict[str, str]) -> httpx2.Response:
    name, method, path = operation
    body = BODIES.get(name.removeprefix("mka1_"))
    sent = {"json": json.loads(filled(json.dumps(body), things))} if body else {}
    return await http.request(method, filled(path, things), **sent)


def bare(answer: httpx2.Response, things: dict[str, str]) -> str:
    """The answer without what must differ: the id that was asked for, and the request's own id."""
    text = re.sub(r"req_[0-9a-f]{32}", "", answer.text)
    for thing in sorted(things.values(), key=len, reverse=True):
        text = text.replace(thing, "")
    return text


async def strangers(api: Api) -> dict[str, tuple[str, dict[str, str]]]:
    """Keys that may do everything, but not here, with their further headers."""
    await make_project(api, "proj-strangers")
    await make_project(api, "proj-walls-too", "org-walls")
    return {
        "another project": (await api.new_key("admin", project="proj-strangers"), {}),
        "another organisation": (await api.new_key("admin", org="org-walls", project="proj-walls-too"), {}),
    }


async def test_what_is_not_yours_is_not_there(api: Api, mine: dict[str, str]) -> None:
    nothing = unknown(mine)
    assert not set(mine.values()) & set(nothing.values())
    walked = 0
    for name, (key, headers) in (await strangers(api)).items():
        async with api.http(key) as http:
            http.headers.update(headers)
            for operation in await operations(api):
                foreign, none = await asyncio.gather(ask(http, operation, mine), ask(http, operation, nothing))
                where = (name, operation, foreign.text[:300], none.text[:300])
                assert foreign.status_code == none.status_code < 500 or foreign.status_code == 503, where
                assert "a word of mine" not in foreign.text, where
                if "{" in operation[2] or operation[0] in BODIES:
                    assert bare(foreign, mine) == bare(none, nothing), where
                walked += 1
    assert walked >= 60


async def test_what_another_end_user_made_is_not_there_either(api: Api) -> None:
    key = await api.new_key("admin", project=OWNER)
    async with api.http(key) as http:
        made = await http.post(
            "/v1/files",
            files={"file": ("theirs.jsonl", LINE * 12)},
            data={"purpose": "fine-tune"},
            headers={"x-on-behalf-of": "ann"},
        )
        theirs = made.json()["id"]
        job = await http.post(
            "/v1/fine_tuning/jobs", json={"model": TINY, "training_file": theirs}, headers={"x-on-behalf-of": "ann"}
        )
        things = {"file_id": theirs, "job_id": job.json()["id"]}
        for name, method, path in await operations(api):
            if not set(re.findall(r"\{(\w+)\}", path)) & set(things):
                continue
            bob = await ask_as(http, "bob", (name, method, path), things)
            none = await ask_as(http, "bob", (name, method, path), unknown(things))
            assert (bob.status_code, bare(bob, things)) == (none.status_code, bare(none, unknown(things))), (
                name,
                bob.text,
            )
        seen = await http.get(f"/v1/files/{theirs}", headers={"x-on-behalf-of": "ann"})
        listed = await http.get("/v1/files", headers={"x-on-behalf-of": "bob"})
    assert seen.status_code == 200
    assert theirs not in listed.text


async def ask_as(
    http: httpx2.AsyncClient, end_user: str, operation: tuple[str, str, str], things: dict[str, str]
) -> httpx2.Response:
    _, method, path = operation
    return await http.request(method, filled(path, things), headers={"x-on-behalf-of": end_user})


async def test_lists_hold_nothing_of_others(api: Api, mine: dict[str, str]) -> None:
    for key, headers in (await strangers(api)).values():
        async with api.http(key) as http:
            http.headers.update(headers)
            for _, method, path in await operations(api):
                if method == "GET" and "{" not in path and "/organization/" not in path:
                    answer = await http.get(path)
                    assert answer.status_code in (200, 400), (path, answer.text)
                    assert not [thing for thing in mine.values() if thing in answer.text], path


async def test_bad_keys_get_nothing_anywhere(api: Api, mine: dict[str, str]) -> None:
    revoked, expired, powerless = await api.new_key("admin"), await api.new_key("admin"), await api.new_key()
    ids = {name: key.split("-")[2] for name, key in {"revoked": revoked, "expired": expired}.items()}
    await api.db["api_keys"].update_one({"_id": ids["revoked"]}, {"$set": {"revoked": True}})
    await api.db["api_keys"].update_one({"_id": ids["expired"]}, [{"$set": {"expires_at": "$$NOW"}}])
    cases = [("", 401), (revoked, 401), (expired, 401), (api.key[:-4] + "AAAA", 401), (powerless, 403)]
    async with httpx2.AsyncClient(base_url=api.url) as http:
        for operation, (key, status) in itertools.product(await operations(api), cases):
            http.headers["authorization"] = f"Bearer {key or 'none'}"
            answer = await ask(http, operation, mine)
            assert answer.status_code == status, (operation, key[:10], answer.text)
