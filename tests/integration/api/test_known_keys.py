"""Keys that are in use are looked up beside the requests, all in one query, and end as soon as ever."""

from builders.waiting import until
from luthier_api.keys import KeyRing
from luthier_common.kit.mongo import Database

SCOPES = frozenset({"admin"})


async def test_keys_in_use_are_looked_up_together_before_they_age(db: Database) -> None:
    ring = KeyRing(db, b"pepper", cache_s=8)
    keys = [await ring.create("many", SCOPES) for _ in range(20)]
    unused = await ring.create("seldom", SCOPES)
    await db.command("profile", 2)
    assert await ring.principal(unused) is not None

    async def looked_up() -> list[int]:
        rows = db["system.profile"].find({"ns": f"{db.name}.api_keys", "command.aggregate": "api_keys"})
        return [len(row["command"]["pipeline"][0]["$match"]["_id"]["$in"]) async for row in rows.sort("ts", 1)]

    async def in_one() -> bool:
        for key in keys:
            assert await ring.principal(key) is not None
        return len(await looked_up()) > 1 + len(keys)

    await until(in_one, within_s=20, every_s=0.2, what="a look at keys ahead of time")
    assert await looked_up() == [1] * (1 + len(keys)) + [len(keys)]


async def test_a_key_in_use_all_along_ends_when_another_process_revokes_it(db: Database) -> None:
    ring, elsewhere = (KeyRing(db, b"pepper", cache_s=0.4) for _ in range(2))
    key, other = await ring.create("ends", SCOPES), await ring.create("stays", SCOPES)
    assert await ring.principal(key) is not None
    await elsewhere.revoke({"name": "ends"})

    async def has_ended() -> bool:
        assert await ring.principal(other) is not None
        return await ring.principal(key) is None

    await until(has_ended, within_s=5, every_s=0.02, what="the end of a revoked key")


async def test_a_value_that_was_rotated_away_ends_with_its_grace_though_it_is_in_use(db: Database) -> None:
    ring, elsewhere = (KeyRing(db, b"pepper", cache_s=0.4) for _ in range(2))
    before = await ring.create("rotated", SCOPES)
    key_id = before.split("-")[2]
    assert await ring.principal(before) is not None
    rotated = await elsewhere.rotate({}, key_id, 1)
    assert rotated is not None

    async def has_ended() -> bool:
        assert await ring.principal(rotated.value) is not None
        return await ring.principal(before) is None

    await until(has_ended, within_s=5, every_s=0.02, what="the end of the former value")
