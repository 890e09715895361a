"""Every route of the OpenAPI document, asked for somebody else's things: never a byte of them, never a hint of them."""

import itertools

import httpx2
import pytest

from integration.api.conftest import Api
from integration.api.tenants import SECRET, Tenant, settled
from integration.api.walls import (
    BODIES,
    DIALECTS,
    FORM,
    FORMS,
    JSON,
    NAMELESS,
    TABLES,
    ask,
    cores,
    get_own,
    operations,
    strangers,
    walk,
)


@pytest.fixture(scope="module")
async def mine(api: Api) -> Tenant:
    """For tests that leave it as it is."""
    return await settled(api)


async def test_every_operation_is_asked_for_real_things(api: Api, mine: Tenant) -> None:
    asked = await operations(api)
    names = {operation.name for operation in asked}
    for below in DIALECTS:
        assert {operation.name for operation in asked if operation.path.startswith(below)} == names
    assert {name for table in TABLES for name in table} <= names
    assert {operation.name for operation in asked if operation.body == JSON} == set(BODIES)
    assert {operation.name for operation in asked if operation.body == FORM} == set(FORMS)
    assert {operation.name for operation in asked if not operation.things} == NAMELESS
    assert {thing for operation in asked for thing in operation.things} <= set(mine.things)


@pytest.mark.parametrize("below", DIALECTS)
async def test_what_is_not_yours_is_not_there_and_what_is_yours_is(api: Api, below: str) -> None:
    mine, asked = await settled(api), await operations(api, below)
    for stranger in await strangers(mine):
        assert await walk(stranger, mine, asked) >= len(asked) // 2
    await get_own(mine, asked)


async def test_lists_hold_nothing_of_others_and_all_that_is_yours(api: Api, mine: Tenant) -> None:
    found: set[str] = set()
    for who in (mine, *await strangers(mine)):
        async with who.http() as http:
            for operation in await operations(api):
                is_shared = operation.is_of_organisation and who.org == mine.org
                if not operation.is_list or (is_shared and who is not mine):
                    continue
                answer = await http.get(operation.path)
                assert answer.status_code == 200, (operation, answer.text)
                held = {name for name, core in cores(mine.things).items() if core in answer.text}
                assert who is mine or not held, (operation, held)
                found |= held
    assert found >= {"file_id", "job_id", "model", "project_id", "user_id", "admin_key_id"}


async def test_bad_keys_get_nothing_anywhere(api: Api, mine: Tenant) -> None:
    place = {"org": mine.org, "project": mine.project}
    revoked, expired = await api.new_key("admin", **place), await api.new_key("admin", **place)
    powerless = await api.new_key(**place)
    ids = {name: key.split("-")[2] for name, key in {"revoked": revoked, "expired": expired}.items()}
    await api.db["api_keys"].update_one({"_id": ids["revoked"]}, {"$set": {"revoked": True}})
    await api.db["api_keys"].update_one({"_id": ids["expired"]}, [{"$set": {"expires_at": "$$NOW"}}])
    cases = [("", 401), (revoked, 401), (expired, 401), (mine.key[:-4] + "AAAA", 401), (powerless, 403)]
    async with httpx2.AsyncClient(base_url=api.url) as http:
        for operation, (key, status) in itertools.product(await operations(api), cases):
            http.headers["authorization"] = f"Bearer {key or 'none'}"
            answer = await ask(http, operation, mine.things)
            assert answer.status_code == status, (operation, key[:10], answer.text)
            assert SECRET not in answer.text
