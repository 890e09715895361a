"""Chains of audit rows: whatever is changed, removed or put in between is found."""

import copy
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest

from luthier_api.audit import NO_HASH, Verified, chained, row_hash, to_milliseconds, verify_rows
from luthier_common.kit.mongo import Doc

AT = to_milliseconds(datetime(2026, 11, 21, 15, 0, 0, 123456, UTC))


def make_chain(instance: str, num_rows: int, anchors: list[Doc]) -> list[Doc]:
    rows = [chained(instance, 0, NO_HASH, {"at": AT, "operation": "open_chain", "anchors": anchors})]
    for seq in range(1, num_rows):
        rows.append(chained(instance, seq, rows[-1]["hash"], {"at": AT, "org": "o", "operation": f"op-{seq}"}))
    return rows


def make_two_chains() -> list[Doc]:
    first = make_chain("a", 4, [])
    head = {"instance": "a", "seq": 3, "hash": first[-1]["hash"]}
    return first + make_chain("b", 3, [head])


async def verify(rows: list[Doc]) -> Verified:
    async def each() -> AsyncIterator[Doc]:
        for row in rows:
            yield row

    return await verify_rows(each())


async def test_chains_as_they_were_written_are_whole() -> None:
    assert await verify(make_two_chains()) == Verified(2, 7)
    assert await verify([]) == Verified(0, 0)


def change_a_field(rows: list[Doc]) -> None:
    rows[2]["org"] = "another"


def change_a_field_and_its_hash(rows: list[Doc]) -> None:
    rows[2]["org"] = "another"
    rows[2]["hash"] = row_hash(rows[2])


def remove_one(rows: list[Doc]) -> None:
    del rows[2]


def remove_the_end_of_an_older_chain(rows: list[Doc]) -> None:
    del rows[3]


def remove_an_older_chain(rows: list[Doc]) -> None:
    del rows[:4]


def write_an_older_chain_anew(rows: list[Doc]) -> None:
    other = chained("a", 1, rows[0]["hash"], {"at": AT, "org": "o", "operation": "forged"})
    rest = [chained("a", 2, other["hash"], {"at": AT}), *[]]
    rows[1:4] = [other, rest[0], chained("a", 3, rest[0]["hash"], {"at": AT})]


@pytest.mark.parametrize(
    ("tamper", "broken"),
    [
        (change_a_field, "a/2"),
        (change_a_field_and_its_hash, "a/3"),
        (remove_one, "a/3"),
        (remove_the_end_of_an_older_chain, "a/3"),
        (remove_an_older_chain, "a/3"),
        (write_an_older_chain_anew, "a/3"),
    ],
)
async def test_what_was_done_to_a_row_is_found(tamper: Callable[[list[Doc]], None], broken: str) -> None:
    rows = copy.deepcopy(make_two_chains())
    tamper(rows)
    found = await verify(rows)
    assert found.broken == broken
    assert found.why
