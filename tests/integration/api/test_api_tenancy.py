"""Organisations, projects, users and keys through the unchanged administration client of the openai package."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, Protocol

import httpx2
import pytest
from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
)

from builders.waiting import until
from luthier_common.kit.mongo import Database


class RunningApi(Protocol):
    """What the fixture `api` of this folder gives."""

    url: str
    key: str
    db: Database
    home: Any

    def sdk(self, key: str | None = None) -> AsyncOpenAI: ...
    def http(self, key: str | None = None) -> httpx2.AsyncClient: ...
    async def new_key(self, *scopes: str, project: str = ..., org: str = ...) -> str: ...


@pytest.fixture
async def admin(api: RunningApi) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{api.url}/v1",
        api_key=api.key,
        admin_api_key=api.key,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


async def operator(api: RunningApi, *words: str, home: str | None = None) -> tuple[int, str, str]:
    """`python -m luthier_api.admin`, as an operator runs it."""
    env = {
        "PATH": os.environ["PATH"],
        "LUTHIER_HOME": home or str(api.home),
        "LUTHIER_MONGO_URL": os.environ["TEST_MONGO_URL"],
        "LUTHIER_MONGO_DATABASE": api.db.name,
        "LUTHIER_KAFKA_URL": "127.0.0.1:1",
        "LUTHIER_OBJECTS_URL": f"file://{api.home}/objects",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "luthier_api.admin", *words, env=env, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(autouse=True)
def _operators_know_the_database(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MONGO_URL", mongo_url)


async def new_key(api: RunningApi, project: str, *scopes: str, **more: object) -> dict[str, Any]:
    """A key made over HTTP by our own route."""
    async with api.http() as http:
        body = {"name": "made", "scopes": list(scopes), **more}
        answer = await http.post(f"/v1/organization/projects/{project}/api_keys", json=body)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made


async def works(api: RunningApi, value: str) -> bool:
    async with api.http(value) as http:
        status = (await http.get("/v1/files")).status_code
    assert status in (200, 401)
    return status == 200


async def test_projects_are_created_listed_renamed_and_archived(api: RunningApi, admin: AsyncOpenAI) -> None:
    projects = admin.admin.organization.projects
    made = await projects.create(name="Support")
    assert (made.object, made.name, made.status, made.archived_at) == (
        "organization.project",
        "Support",
        "active",
        None,
    )
    assert (await projects.retrieve(made.id)).id == made.id
    assert (await projects.update(made.id, name="Helpdesk")).name == "Helpdesk"
    others = [(await projects.create(name=f"p{n}")).id for n in range(3)]
    listed = [project.id async for project in projects.list(limit=2)]
    assert {made.id, "proj-default", *others} <= set(listed)
    assert len(listed) == len(set(listed))

    key = await new_key(api, made.id, "files:read")
    assert await works(api, key["value"])
    archived = await projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    assert not await works(api, key["value"])
    assert (await projects.archive(made.id)).archived_at == archived.archived_at
    assert made.id not in [project.id async for project in projects.list()]
    assert made.id in [project.id async for project in projects.list(include_archived=True, limit=100)]
    with pytest.raises(ConflictError) as refused:
        await projects.update(made.id, name="again")
    assert refused.value.code == "project_archived"
    assert refused.value.response.headers["x-should-retry"] == "false"


async def test_a_key_cannot_archive_its_own_project(admin: AsyncOpenAI) -> None:
    with pytest.raises(ConflictError) as refused:
        await admin.admin.organization.projects.archive("proj-default")
    assert refused.value.code == "own_project"


async def test_a_key_is_shown_once_and_listed_without_its_value(api: RunningApi, admin: AsyncOpenAI) -> None:
    made = await new_key(api, "proj-default", "files:read", "models:read", expires_in_seconds=3600)
    assert made["value"].startswith("sk-lut-")
    assert made["scopes"] == ["files:read", "models:read"]
    assert made["expires_at"] - made["created_at"] == 3600
    await until(lambda: works(api, made["value"]))
    keys = admin.admin.organization.projects.api_keys
    seen = await keys.retrieve(made["id"], project_id="proj-default")
    assert (seen.id, seen.name, seen.owner_project_access) == (made["id"], "made", "active")
    assert seen.owner.type is None
    listed = [key async for key in keys.list("proj-default", limit=3)]
    assert made["id"] in [key.id for key in listed]
    secret = made["value"].rsplit("-", 1)[-1]
    assert secret not in seen.to_json() + "".join(key.to_json() for key in listed)
    stored = await api.db["api_keys"].find_one({"_id": made["id"].removeprefix("key_")})
    assert stored is not None
    assert made["value"] not in str(stored)
    assert secret not in (api.home / "log").read_text()


async def test_the_last_use_of_a_key_is_noted(api: RunningApi, admin: AsyncOpenAI) -> None:
    made = await new_key(api, "proj-default", "files:read")
    keys = admin.admin.organization.projects.api_keys
    assert (await keys.retrieve(made["id"], project_id="proj-default")).last_used_at is None
    assert await works(api, made["value"])

    async def is_noted() -> bool:
        return (await keys.retrieve(made["id"], project_id="proj-default")).last_used_at is not None

    await until(is_noted)


async def test_a_revoked_key_is_refused_at_once_and_is_gone(api: RunningApi, admin: AsyncOpenAI) -> None:
    made = await new_key(api, "proj-default", "files:read")
    assert await works(api, made["value"])
    keys = admin.admin.organization.projects.api_keys
    assert (await keys.delete(made["id"], project_id="proj-default")).deleted
    assert not await works(api, made["value"])
    with pytest.raises(AuthenticationError) as refused:
        await api.sdk(made["value"]).files.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(NotFoundError):
        await keys.retrieve(made["id"], project_id="proj-default")
    with pytest.raises(NotFoundError):
        await keys.delete(made["id"], project_id="proj-default")


async def test_a_key_that_another_process_revoked_is_refused_when_the_cache_has_run_out(api: RunningApi) -> None:
    made = await new_key(api, "proj-default", "files:read")
    assert await works(api, made["value"])
    status, out, _ = await operator(api, "keys", "revoke", made["id"])
    assert (status, made["value"] in out) == (0, False)

    async def is_refused() -> bool:
        return not await works(api, made["value"])

    await until(is_refused)


async def test_an_expired_key_is_refused(api: RunningApi) -> None:
    made = await new_key(api, "proj-default", "files:read", expires_in_seconds=2)
    assert await works(api, made["value"])

    async def is_refused() -> bool:
        return not await works(api, made["value"])

    await until(is_refused)
    async with api.http() as http:
        place = f"/v1/organization/projects/proj-default/api_keys/{made['id']}/rotate"
        assert (await http.post(place, json={})).status_code == 404, "what has ended is not brought back"


async def test_a_rotated_key_has_a_new_value_and_the_old_one_a_grace(api: RunningApi) -> None:
    made = await new_key(api, "proj-default", "files:read")
    async with api.http() as http:
        place = f"/v1/organization/projects/proj-default/api_keys/{made['id']}/rotate"
        second = (await http.post(place, json={"keep_old_for_seconds": 3600})).json()
        assert second["id"] == made["id"]
        assert second["value"] != made["value"]
        assert await works(api, made["value"])
        assert await works(api, second["value"])
        third = (await http.post(place, json={"keep_old_for_seconds": 2})).json()
        assert not await works(api, made["value"]), "only the last value but one is kept"
        assert await works(api, second["value"])

        async def is_refused() -> bool:
            return not await works(api, second["value"])

        await until(is_refused)
        fourth = (await http.post(place, json={})).json()
        assert not await works(api, third["value"]), "without a grace the value before ends at once"
        assert await works(api, fourth["value"])
        assert (await http.post(place, json={"keep_old_for_seconds": 86_401})).status_code == 400


@pytest.mark.parametrize("scope", ["files:write", "on-behalf-of", "inference"])
async def test_a_key_without_the_scope_admin_cannot_make_keys(api: RunningApi, scope: str) -> None:
    key = await api.new_key(scope)
    client = AsyncOpenAI(base_url=f"{api.url}/v1", api_key=key, admin_api_key=key, max_retries=0)
    async with client, api.http(key) as http:
        body = {"name": "more", "scopes": ["admin"]}
        for place in ("/v1/organization/projects/proj-default/api_keys", "/api/v1/llm/organization/admin_api_keys"):
            answer = await http.post(place, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope")
        with pytest.raises(PermissionDeniedError):
            await client.admin.organization.admin_api_keys.create(name="more")
        with pytest.raises(PermissionDeniedError):
            await client.admin.organization.projects.api_keys.list("proj-default")


async def test_administration_is_not_done_for_an_end_user(api: RunningApi) -> None:
    async with api.http() as http:
        answer = await http.get("/v1/organization/projects", headers={"x-on-behalf-of": "someone"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "end_user_not_allowed")


async def test_what_a_key_may_be_is_checked(api: RunningApi) -> None:
    async with api.http() as http:
        for body, param in (
            ({"name": "x", "scopes": ["files:everything"]}, "scopes"),
            ({"name": "x", "scopes": []}, "scopes"),
            ({"name": "", "scopes": ["files:read"]}, "name"),
            ({"scopes": ["files:read"]}, "name"),
            ({"name": "x", "scopes": ["files:read"], "expires_in_seconds": 0}, "expires_in_seconds"),
            ({"name": "x", "scopes": ["files:read"], "user_id": "user-of-nobody"}, "user_id"),
            ({"name": "x", "scopes": ["files:read"], "colour": "red"}, "colour"),
        ):
            answer = await http.post("/v1/organization/projects/proj-default/api_keys", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_names_in_every_script_and_no_broken_ones(api: RunningApi) -> None:
    async with api.http() as http:
        named = await http.post("/v1/organization/projects", json={"name": "客服 $where 🙂"})
        assert (named.status_code, named.json()["name"]) == (200, "客服 $where 🙂")
        for body in (
            b'{"name": "\\ud800"}',
            b'{"name": "a\\u0000b"}',
            b'{"name": 1}',
            b'{"name": null}',
            b"[]",
            b'{"name": "a"',
        ):
            answer = await http.post(
                "/v1/organization/projects", content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400, body
        for place in (
            "projects/%00",
            "users/%ED%A0%80",
            "projects/x/api_keys/%F0%9F%99%82",
            "admin_api_keys/key_%24ne",
        ):
            assert (await http.get(f"/v1/organization/{place}")).status_code == 404, place
        for query in ("after=nothing", "after=proj-%00", "limit=0", "limit=101", "include_archived=maybe", "order=asc"):
            status = (await http.get(f"/v1/organization/projects?{query}")).status_code
            assert status == (200 if query == "after=proj-%00" else 400), query


async def test_a_strict_key_is_as_the_header(api: RunningApi) -> None:
    made = await new_key(api, "proj-default", "fine-tuning:read", strict=True)
    client = api.sdk()
    row = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
    file = await client.files.create(file=("rows.jsonl", row * 10), purpose="fine-tune")
    job = await client.fine_tuning.jobs.create(model="tiny-base", training_file=file.id)
    stored = await api.db["jobs"].find_one_and_update({"_id": job.id}, {"$set": {"status": "paused"}})
    assert stored is not None
    try:
        async with api.http(made["value"]) as http:
            place = f"/v1/fine_tuning/jobs/{job.id}"
            assert (await http.get(place)).json()["status"] == "queued"
            assert (await http.get(place, headers={"x-luthier-strict": "false"})).json()["status"] == "paused"
    finally:
        await api.db["jobs"].update_one({"_id": job.id}, {"$set": {"status": stored["status"]}})
        await client.fine_tuning.jobs.cancel(job.id)


async def test_admin_keys(api: RunningApi, admin: AsyncOpenAI) -> None:
    keys = admin.admin.organization.admin_api_keys
    made = await keys.create(name="second", expires_in_seconds=600)
    assert made.value.startswith("sk-lut-")
    assert made.expires_at is not None
    assert (await keys.retrieve(made.id)).redacted_value != made.value
    ids = [key.id async for key in keys.list(limit=1, order="desc")]
    assert made.id in ids
    assert len(ids) == len(set(ids)) > 1
    second = AsyncOpenAI(base_url=f"{api.url}/v1", api_key=made.value, admin_api_key=made.value, max_retries=0)
    async with second:
        assert [project.id async for project in second.admin.organization.projects.list()]
        assert (await keys.delete(made.id)).deleted
        with pytest.raises(AuthenticationError):
            await second.admin.organization.projects.list()


async def test_users_of_organization_and_project(api: RunningApi, admin: AsyncOpenAI) -> None:
    organization = admin.admin.organization
    project = await organization.projects.create(name="people")
    async with api.http() as http:
        body = {"email": "Ann@Example.com", "name": "Ann"}
        ann = (await http.post("/v1/organization/users", json=body)).json()
        twice = await http.post("/v1/organization/users", json=body)
        assert (twice.status_code, twice.json()["error"]["code"]) == (409, "already_exists")
        refused = await http.post("/v1/organization/users", json={"email": "not an address"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "email")
    seen = await organization.users.retrieve(ann["id"])
    assert (seen.email, seen.name, seen.role) == ("ann@example.com", "Ann", "reader")
    assert ann["id"] in [user.id async for user in organization.users.list()]

    with pytest.raises(AssertionError, match="not in this project"):
        await new_key(api, project.id, "files:read", user_id=ann["id"])
    member = await organization.projects.users.create(project.id, role="member", email="ann@example.com")
    assert (member.id, member.role) == (ann["id"], "member")
    updated = await organization.projects.users.update(ann["id"], project_id=project.id, role="owner")
    assert updated.role == "owner"
    assert [user.id async for user in organization.projects.users.list(project.id)] == [ann["id"]]
    assert (await organization.projects.users.retrieve(ann["id"], project_id=project.id)).email == "ann@example.com"

    orphan = {"org": "org-default", "project": project.id, "user": "user-zz", "role": "member"}
    await api.db["project_users"].insert_one({"_id": f"{project.id}/user-zz", **orphan, "created_at": None})
    assert [user.id async for user in organization.projects.users.list(project.id, limit=1)] == [ann["id"]]

    key = await new_key(api, project.id, "files:read", user_id=ann["id"])
    listed = await organization.projects.api_keys.retrieve(key["id"], project_id=project.id)
    assert listed.owner.user is not None
    assert listed.owner.user.email == "ann@example.com"
    assert await works(api, key["value"])
    assert (await organization.projects.users.delete(ann["id"], project_id=project.id)).deleted
    assert not await works(api, key["value"])
    assert [user.id async for user in organization.projects.users.list(project.id)] == []

    assert (await organization.users.delete(ann["id"])).deleted
    with pytest.raises(NotFoundError):
        await organization.users.retrieve(ann["id"])


async def test_only_owners_have_admin_keys_and_a_demoted_one_has_them_no_more(
    api: RunningApi, admin: AsyncOpenAI
) -> None:
    users = admin.admin.organization.users
    async with api.http() as http:
        bob = (await http.post("/v1/organization/users", json={"email": "bob@example.com"})).json()
    with pytest.raises(AssertionError, match="Only owners"):
        await new_key(api, "proj-default", "admin", user_id=bob["id"])
    assert (await users.update(bob["id"], role="owner")).role == "owner"
    key = await new_key(api, "proj-default", "admin", "files:read", user_id=bob["id"])
    async with api.http(key["value"]) as http:
        assert (await http.get("/v1/organization/projects")).status_code == 200
        await users.update(bob["id"], role="reader")
        assert (await http.get("/v1/files")).status_code == 401, "a reader works in the projects that let them in"
        await admin.admin.organization.projects.users.create("proj-default", role="member", user_id=bob["id"])
        await until(lambda: works(api, key["value"]))
        assert (await http.get("/v1/organization/projects")).status_code == 403
        assert (await http.get("/v1/files")).status_code == 200
        await users.delete(bob["id"])
        assert (await http.get("/v1/files")).status_code == 401


async def test_service_accounts(api: RunningApi, admin: AsyncOpenAI) -> None:
    projects = admin.admin.organization.projects
    project = await projects.create(name="robots")
    made = await projects.service_accounts.create(project.id, name="nightly")
    assert made.api_key is not None
    assert made.role == "member"
    assert await works(api, made.api_key.value)
    async with api.http(made.api_key.value) as http:
        assert (await http.get("/v1/organization/projects")).status_code == 403
    bare = await projects.service_accounts.create(project.id, name="bare", create_service_account_only=True)
    assert (bare.api_key, bare.role) == (None, "none")
    key = await projects.service_accounts.api_keys.create(bare.id, project_id=project.id, scopes=["files:read"])
    assert await works(api, key.value)
    with pytest.raises(BadRequestError):
        await projects.service_accounts.api_keys.create(bare.id, project_id=project.id, scopes=["admin"])
    listed = [account.id async for account in projects.service_accounts.list(project.id)]
    assert listed == [bare.id, made.id]
    renamed = await projects.service_accounts.update(bare.id, project_id=project.id, name="weekly")
    assert renamed.name == "weekly"
    assert (await projects.service_accounts.retrieve(bare.id, project_id=project.id)).name == "weekly"
    owner = (await projects.api_keys.retrieve(key.id, project_id=project.id)).owner
    assert owner.service_account is not None
    assert owner.service_account.id == bare.id
    assert (await projects.service_accounts.delete(bare.id, project_id=project.id)).deleted
    assert not await works(api, key.value)
    assert await works(api, made.api_key.value)


async def test_another_organization_sees_nothing_of_this_one(api: RunningApi, admin: AsyncOpenAI) -> None:
    status, out, _ = await operator(api, "orgs", "create", "Other & Co")
    assert status == 0
    told = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    value, theirs = told["admin key"], told["project"]
    made = await new_key(api, "proj-default", "files:read")
    async with api.http() as http:
        ours = (await http.post("/v1/organization/users", json={"email": "eve@example.com"})).json()["id"]
    stranger = AsyncOpenAI(base_url=f"{api.url}/v1", api_key=value, admin_api_key=value, max_retries=0)
    async with stranger:
        org = stranger.admin.organization
        assert [project.id async for project in org.projects.list()] == [theirs]
        assert [user.id async for user in org.users.list()] == []
        assert len([key.id async for key in org.admin_api_keys.list()]) == 1
        with pytest.raises(NotFoundError) as foreign:
            await org.projects.retrieve("proj-default")
        with pytest.raises(NotFoundError) as absent:
            await org.projects.retrieve("proj-of-none")
        assert foreign.value.message.replace("proj-default", "") == absent.value.message.replace("proj-of-none", "")
        for refused in (
            org.projects.archive("proj-default"),
            org.projects.update("proj-default", name="mine"),
            org.projects.api_keys.list("proj-default"),
            org.projects.api_keys.retrieve(made["id"], project_id="proj-default"),
            org.projects.api_keys.delete(made["id"], project_id="proj-default"),
            org.projects.api_keys.delete(made["id"], project_id=theirs),
            org.projects.users.list("proj-default"),
            org.projects.service_accounts.create("proj-default", name="mine"),
            org.users.retrieve(ours),
            org.users.update(ours, role="owner"),
            org.users.delete(ours),
            org.admin_api_keys.retrieve(made["id"]),
        ):
            with pytest.raises(NotFoundError):
                await refused
        with pytest.raises(BadRequestError):
            await org.projects.users.create(theirs, role="member", user_id=ours)
    assert await works(api, made["value"])
    assert (await admin.admin.organization.projects.retrieve("proj-default")).status == "active"


async def test_operators_make_keys_after_a_lockout_and_never_with_a_wrong_pepper(
    api: RunningApi, tmp_path: Any
) -> None:
    status, out, _ = await operator(
        api, *("keys", "create", "--project", "proj-default", "--scope", "files:read", "--rate-limit", "60")
    )
    assert status == 0
    key_id, value = (line.split()[-1] for line in out.splitlines())
    assert await works(api, value)
    status, out, _ = await operator(api, "keys", "list", "--project", "proj-default")
    assert (status, key_id in out, value in out) == (0, True, False)
    status, out, _ = await operator(api, "orgs", "list")
    assert (status, "org-default" in out) == (0, True)
    for words, home in (
        (("keys", "create", "--project", "proj-default"), str(tmp_path)),
        (("keys", "create", "--project", "proj-none"), None),
        (("keys", "revoke", "key_none"), None),
    ):
        status, out, err = await operator(api, *words, home=home)
        assert (status, out) == (1, "")
        assert err.startswith("luthier admin: ")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
