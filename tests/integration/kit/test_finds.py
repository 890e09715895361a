"""Documents that are looked up by id at the same time: in few queries, and each behind its own wall."""

import asyncio

from luthier_common.kit.mongo import Database, Doc

FIELDS = {"project": 1, "name": 1}


def _thing(number: int, project: str) -> Doc:
    return {"_id": f"thing-{number}", "project": project, "name": f"n{number}", "size": number}


async def _num_queries(db: Database) -> int:
    return await db["system.profile"].count_documents({"op": "query", "ns": f"{db.name}.things"})


async def test_many_at_once_are_few_queries_and_each_gets_its_own(db: Database) -> None:
    await db["things"].insert_many([_thing(number, "p") for number in range(50)])
    await db.command("profile", 2)
    finds = db.finds("things", FIELDS)
    wanted = [f"thing-{number}" for number in range(60)]
    found = await asyncio.gather(*(finds.find({"_id": thing, "project": "p"}) for thing in wanted))
    assert found[:50] == [{"_id": f"thing-{n}", "project": "p", "name": f"n{n}"} for n in range(50)]
    assert found[50:] == [None] * 10
    assert await _num_queries(db) == 1
    one = await db.finds("things", FIELDS).find({"_id": "thing-7", "project": "p"})
    assert one == {"_id": "thing-7", "project": "p", "name": "n7"}
    assert await _num_queries(db) == 2


async def test_the_same_id_is_not_shown_to_who_asks_behind_another_wall(db: Database) -> None:
    await db["things"].insert_many([_thing(1, "ours"), _thing(2, "theirs")])
    finds = db.finds("things", FIELDS)
    asked = [
        {"_id": thing, "project": project}
        for _ in range(3)
        for thing in ("thing-1", "thing-2")
        for project in ("ours", "theirs")
    ]
    found = await asyncio.gather(*(finds.find(query) for query in asked))
    seen = {(query["_id"], query["project"]) for query, doc in zip(asked, found, strict=True) if doc is not None}
    assert seen == {("thing-1", "ours"), ("thing-2", "theirs")}


async def test_what_no_query_can_hold_is_refused_to_its_asker_alone(db: Database) -> None:
    await db["things"].insert_one(_thing(1, "p"))
    finds = db.finds("things", FIELDS)
    queries = [{"_id": "thing-1"}, {"_id": "thing-\ud800"}, {"_id": "thing-2"}]
    good, bad, missing = await asyncio.gather(*map(finds.find, queries), return_exceptions=True)
    assert isinstance(good, dict)
    assert isinstance(bad, UnicodeEncodeError)
    assert missing is None


async def test_answers_are_nobody_elses_to_change(db: Database) -> None:
    await db["things"].insert_one(_thing(1, "p"))
    finds = db.finds("things", FIELDS)
    first, second = await asyncio.gather(finds.find({"_id": "thing-1"}), finds.find({"_id": "thing-1"}))
    assert first is not None
    first["name"] = "changed"
    assert second == {"_id": "thing-1", "project": "p", "name": "n1"}
