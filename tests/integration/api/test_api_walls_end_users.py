"""Inside of one project: what was made on behalf of one end user is not there on behalf of another one."""

from dataclasses import replace

import pytest

from integration.api.conftest import Api
from integration.api.tenants import settled
from integration.api.walls import DIALECTS, ask, cores, get_own, operations, walk


@pytest.mark.parametrize("below", DIALECTS)
async def test_what_was_made_for_another_end_user_is_not_there_and_your_own_is(api: Api, below: str) -> None:
    ann = await settled(api, "ann")
    asked = [operation for operation in await operations(api, below) if not operation.is_administration]
    assert await walk(replace(ann, end_user="bob"), ann, asked) >= len(asked) // 2
    await get_own(ann, asked)


async def test_nothing_is_administrated_on_behalf_of_an_end_user(api: Api) -> None:
    ann = await settled(api, "ann")
    async with ann.http() as http:
        for operation in await operations(api):
            if operation.is_administration:
                answer = await ask(http, operation, ann.things)
                refused = (answer.status_code, answer.json()["error"]["code"])
                assert refused == (403, "end_user_not_allowed"), (operation, answer.text)


async def test_lists_hold_nothing_that_was_made_for_another_end_user(api: Api) -> None:
    ann, found = await settled(api, "ann"), {}
    lists = [each for each in await operations(api) if each.is_list and not each.is_administration]
    for who in (ann, replace(ann, end_user="bob")):
        async with who.http() as http:
            answers = [await http.get(each.path) for each in lists]
        assert {answer.status_code for answer in answers} == {200}
        shown = "".join(answer.text for answer in answers)
        found[who.end_user] = {name for name, core in cores(ann.things).items() if core in shown}
    assert found["ann"] >= {"file_id", "job_id", "model"}
    assert not found["bob"]
