"""A request with an Idempotency-Key whose process died before its answer: repeated, it makes nothing a second time."""

from typing import Any

import pytest

from builders.jobs import JobStory
from integration.api.conftest import Api
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import FileDeleted
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance

PROJECTS = "/v1/organization/projects"
CREATED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/uploads", {"bytes": 5, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}, "uploads"),
    (PROJECTS, {"name": "begun twice"}, "projects"),
    ("/v1/organization/users", {"email": "begun@twice.example", "role": "reader"}, "users"),
    (f"{PROJECTS}/proj-default/service_accounts", {"name": "begun"}, "service_accounts"),
    (f"{PROJECTS}/proj-default/api_keys", {"name": "begun", "scopes": ["files:read"]}, "api_keys"),
    ("/v1/organization/admin_api_keys", {"name": "begun"}, "api_keys"),
]


async def forget_answers(api: Api) -> None:
    """What a kill between a deed and the note of its answer leaves behind."""
    await api.db["idempotency"].update_many(
        {"state": "done"}, {"$set": {"state": "open", "status": None, "body": None}}
    )


@pytest.mark.parametrize(("url", "body", "collection"), CREATED)
async def test_what_was_made_is_not_made_again(api: Api, url: str, body: dict[str, Any], collection: str) -> None:
    headers = {"idempotency-key": f"begun {url}"}
    async with api.http() as http:
        before = await api.db[collection].count_documents({})
        answers = [await http.post(url, json=body, headers=headers)]
        await forget_answers(api)
        answers.append(await http.post(url, json=body, headers=headers))
    first, again = (answer.json() for answer in answers)
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert again["id"] == first["id"]
    assert await api.db[collection].count_documents({}) == before + 1


async def test_of_a_key_only_the_value_that_was_seen_last_is_good(api: Api) -> None:
    url, headers = f"{PROJECTS}/proj-default/api_keys", {"idempotency-key": "begun value"}
    body = {"name": "seen last", "scopes": ["files:read"]}
    async with api.http() as http:
        lost = (await http.post(url, json=body, headers=headers)).json()["value"]
        await forget_answers(api)
        seen = (await http.post(url, json=body, headers=headers)).json()["value"]
        answers = [await http.get("/v1/files", headers={"authorization": f"Bearer {key}"}) for key in (lost, seen)]
    assert [answer.status_code for answer in answers] == [401, 200]


async def test_a_verb_that_was_done_is_no_error_the_second_time(api: Api) -> None:
    job = await JobStory.created(api.db)
    await job.accepted()
    url, headers = f"/v1/fine_tuning/jobs/{job.id}/pause", {"idempotency-key": "begun pause"}
    async with api.http() as http:
        first = await http.post(url, headers=headers)
        await forget_answers(api)
        again = await http.post(url, headers=headers)
        other = await http.post(url, headers={"idempotency-key": "another pause"})
    assert (first.status_code, first.json()["status"]) == (200, "paused"), first.text
    assert (again.status_code, again.json()["status"]) == (200, "paused"), again.text
    assert other.status_code == 409


async def test_a_deletion_whose_answer_was_lost_has_deleted(api: Api) -> None:
    """The client's own retry hears so, also where a crash came between the deletion and what follows from it."""
    file = await api.sdk().files.create(file=("gone.jsonl", b"{}\n"), purpose="fine-tune")
    row = await api.db["files"].find_one({"_id": file.id})
    assert row is not None
    await advance(api.db, Kind.FILE, file.id, FileDeleted(), actor=Actor(room="test"))
    retried = {"x-stainless-retry-count": "1"}
    async with api.http() as http, api.http(await api.new_key("admin", project="proj-other")) as foreign:
        plain = await http.delete(f"/v1/files/{file.id}")
        told = await http.delete(f"/v1/files/{file.id}", headers=retried)
        strange = await foreign.delete(f"/v1/files/{file.id}", headers=retried)
    assert (plain.status_code, strange.status_code) == (404, 404)
    assert (told.status_code, told.json()) == (200, {"id": file.id, "object": "file", "deleted": True})
    kept = await api.db["objects"].find_one({"_id": row["object_key"]})
    assert kept is None or kept["references"] == []


async def test_nothing_is_reserved_for_who_may_not_ask(api: Api) -> None:
    reader = await api.new_key("files:read")
    before = await api.db["idempotency"].count_documents({})
    async with api.http() as http:
        headers = {"idempotency-key": "no scope"}
        scope = await http.post(
            "/v1/uploads", json=CREATED[0][1], headers=headers | {"authorization": f"Bearer {reader}"}
        )
        query = await http.post("/v1/uploads?colour=red", json=CREATED[0][1], headers=headers)
    assert (scope.status_code, query.status_code) == (403, 400)
    assert await api.db["idempotency"].count_documents({}) == before
