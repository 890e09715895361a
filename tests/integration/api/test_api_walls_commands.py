"""How long an answer takes tells nothing: for what is not yours the database is asked as for what is not there.

What the database is asked for is what an answer waits for. It is counted as the database itself records it, so that no
clock is looked at.
"""

import json
from collections import Counter
from collections.abc import Sequence

import pytest

from integration.api.conftest import Api
from integration.api.recorded import recorded
from integration.api.tenants import neighbour, settled
from integration.api.walls import ask, operations, unknown
from luthier_common.kit.mongo import Doc

NOT_AUDIT: Doc = {"ns": {"$not": {"$regex": "audit_log$"}}}
"""Its rows go together into one write."""
NAMES = ("model", "checkpoint", "filename")


@pytest.mark.parametrize("is_in_the_organisation", [True, False])
async def test_the_database_is_asked_the_same_for_what_is_not_yours_and_for_what_is_not_there(
    api: Api, is_in_the_organisation: bool
) -> None:
    mine = await settled(api)
    org = mine.org if is_in_the_organisation else None
    nothing, (one, other) = unknown(mine.things), [await neighbour(api, org) for _ in range(2)]
    asked = [operation for operation in await operations(api, "/v1/") if operation.things]
    asked = [operation for operation in asked if not (org and operation.is_of_organisation)]
    assert len(asked) >= 25
    async with one.http() as ones, other.http() as others:
        for operation in asked:
            for _ in range(2):  # the first time fills what is kept for a moment: keys, bases
                async with recorded(api, NOT_AUDIT) as commands:
                    await ask(ones, operation, mine.things)
                    await ask(others, operation, nothing)
            foreign, absent = [
                _caused_by((who.project if org else who.org, *(things[name] for name in NAMES)), commands)
                for who, things in ((one, mine.things), (other, nothing))
            ]
            assert foreign == absent, operation
            assert foreign, operation


async def test_it_would_be_seen_if_more_were_read(api: Api) -> None:
    mine = await settled(api)
    [operation] = [each for each in await operations(api, "/v1/") if each.name == "retrieve_file"]
    counted = []
    async with mine.http() as http:
        for file_id in (mine.things["weights_id"], unknown(mine.things)["weights_id"]):
            async with recorded(api, NOT_AUDIT) as commands:
                await ask(http, operation, {"file_id": file_id})
            counted.append(_caused_by((mine.project,), commands))
    there, absent = counted
    assert there > absent


def _caused_by(marks: Sequence[str], recorded: list[Doc]) -> Counter[tuple[str, str, str]]:
    """The kinds of those commands that hold one of the marks; what else the api does meanwhile holds none."""
    return Counter(
        (entry["op"], next(iter(entry["command"])), entry["ns"])
        for entry in recorded
        if any(mark in json.dumps(entry["command"], default=str) for mark in marks)
    )
