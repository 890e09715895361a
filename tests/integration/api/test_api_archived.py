"""A project that was archived lends nothing any more, and an operator can take away what it has stored."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from builders.engines import Engine, joined
from builders.waiting import until
from integration.api.conftest import TINY, Api
from integration.api.tenants import Tenant, settled
from luthier_api.project_admin import ProjectError, erase_project
from luthier_common.kit import ledger
from luthier_common.kit.migrate import LISTED
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import open_objects

ASKED = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await settled(api)


async def _colleague(tenant: Tenant) -> str:
    """A key of the project that the tenant lends its checkpoint to; it administrates the organisation too."""
    [lent] = await tenant.api.db["checkpoint_permissions"].find({"owner_project": tenant.project}).to_list(None)
    return await tenant.api.new_key("admin", project=lent["project"], org=tenant.org)


async def _archive(tenant: Tenant, colleague: str) -> None:
    async with tenant.api.http(colleague) as http:
        answer = await http.post(f"/v1/organization/projects/{tenant.project}/archive")
        assert answer.status_code == 200, answer.text


async def _wait_out_what_was_asked_before(tenant: Tenant) -> None:
    """As if it had been archived long ago."""
    long_ago = datetime.now(UTC) - timedelta(hours=3)
    await tenant.api.db["projects"].update_one({"_id": tenant.project}, {"$set": {"archived_at": long_ago}})


async def _erase(api: Api, mongo_url: str, project: str) -> tuple[int | None, str]:
    env = {
        "PATH": os.environ["PATH"],
        "LUTHIER_HOME": str(api.home),
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": api.db.name,
        "LUTHIER_KAFKA_URL": "127.0.0.1:1",
        "LUTHIER_OBJECTS_URL": f"file://{api.home}/objects",
    }
    words = ("-m", "luthier_api.admin", "projects", "erase", project)
    process = await asyncio.create_subprocess_exec(sys.executable, *words, env=env, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, (out + err).decode()


async def _let_deadlines_pass(api: Api, ours: Doc) -> None:
    """A creation that was under way when its file went has had its time."""
    over = {"intent_until": {"$subtract": ["$$NOW", 1]}}
    await api.db["objects"].update_many({**ours, "intent_until": {"$type": "date"}}, [{"$set": over}])


async def test_a_model_that_was_lent_goes_with_its_project(tenant: Tenant) -> None:
    api, colleague = tenant.api, await _colleague(tenant)
    body = {"model": tenant.things["checkpoint"], **ASKED}
    async with joined(api.db, Engine("engine-archived"), TINY), api.http(colleague) as http:
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        await _archive(tenant, colleague)
        refused = await http.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_operator_erases_what_an_archived_project_has_stored(tenant: Tenant, mongo_url: str) -> None:
    """A second job still waits; it is cancelled, and everything is let go."""
    api, ours = tenant.api, {"org": tenant.org, "project": tenant.project}
    async with tenant.http() as http:
        wanted = {"model": TINY, "training_file": tenant.things["file_id"]}
        assert (await http.post("/v1/fine_tuning/jobs", json=wanted)).status_code == 200
    status, told = await _erase(api, mongo_url, tenant.project)
    assert (status, "is not archived" in told) == (1, True), "its keys work: it would fill again"
    await _archive(tenant, await _colleague(tenant))
    await _wait_out_what_was_asked_before(tenant)
    status, told = await _erase(api, mongo_url, tenant.project)
    assert (status, "is erased" in told) == (0, True), told

    for name, listed in LISTED.items():
        assert await api.db[name].find_one({**ours, **listed}) is None, name
    assert await api.db["responses"].count_documents(ours) == 0
    assert await api.db["checkpoint_permissions"].count_documents({"owner_project": tenant.project}) == 0

    async def is_let_go() -> bool:
        await _let_deadlines_pass(api, ours)
        await ledger.sweep(api.db, objects, older_than_s=0, most=10_000)
        return await api.db["objects"].find_one({**ours, "references.0": {"$exists": True}}) is None

    async with open_objects(f"file://{api.home}/objects") as objects:
        await until(is_let_go, what="nothing refers to what it stored")
    assert (await _erase(api, mongo_url, tenant.project))[0] == 0, "once more changes nothing"
    assert (await _erase(api, mongo_url, "proj-none"))[0] == 1


async def test_what_was_asked_before_the_archiving_is_not_said_to_be_erased(tenant: Tenant, mongo_url: str) -> None:
    """A file is on its way in when the project is archived: it is stored behind the first erasing, and goes with the
    next."""
    api, ours = tenant.api, {"org": tenant.org, "project": tenant.project}
    goes_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        yield b'--XX\r\nContent-Disposition: form-data; name="file"; filename="slow"\r\n\r\n'
        await goes_on.wait()
        yield b"x\r\n--XX--\r\n"

    async def is_coming() -> bool:
        return await api.db["objects"].find_one({**ours, "references": {"$regex": "^intent/file"}}) is not None

    async with tenant.http() as http:
        kind = {"content-type": "multipart/form-data; boundary=XX"}
        sending = asyncio.create_task(http.post("/v1/files", content=body(), headers=kind))
        await until(is_coming, what="the file is being stored")
        await _archive(tenant, await _colleague(tenant))
        with pytest.raises(ProjectError, match="do it again after"):  # in this process: the upload has a limit of 5 s
            await erase_project(api.db, tenant.project, longest_request_s=3600)
        goes_on.set()
        assert (await sending).status_code == 200
    assert await api.db["files"].find_one({**ours, **LISTED["files"]}) is not None
    status, told = await _erase(api, mongo_url, tenant.project)
    assert (status, "is erased" in told, "do it again after" in told) == (1, False, True), told
    await _wait_out_what_was_asked_before(tenant)
    assert (await _erase(api, mongo_url, tenant.project))[0] == 0
    assert await api.db["files"].find_one({**ours, **LISTED["files"]}) is None


async def test_an_upload_whose_file_is_still_to_be_made_is_not_said_to_be_erased(db: Database) -> None:
    """Its process died between the two; no other runs that could make the file."""
    long_ago = datetime.now(UTC) - timedelta(hours=3)
    await db["projects"].insert_one({"_id": "proj-a", "org": "org-a", "archived_at": long_ago})
    row = {"_id": "upload_a", "org": "org-a", "project": "proj-a", "file_id": "file-a", "status": "completed"}
    await db["uploads"].insert_one({**row, "is_due": True})
    with pytest.raises(ProjectError, match="uploads are being finished"):
        await erase_project(db, "proj-a", longest_request_s=60)
    await db["uploads"].update_one({"_id": "upload_a"}, {"$unset": {"is_due": True}})
    await erase_project(db, "proj-a", longest_request_s=60)
