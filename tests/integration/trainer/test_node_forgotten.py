"""A machine that is gone for good: an operator forgets it, and it may still come back."""

import asyncio
from collections.abc import Callable

import pytest

from builders.jobs import JobStory
from builders.trainer_node import NODE, World
from luthier_api import admin
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance
from luthier_common.kit.mongo import Doc

Ask = Callable[..., tuple[int, str]]
SCHEDULER = Actor(room="scheduler")


@pytest.fixture
def ask(world: World, mongo_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """`python -m luthier_api.admin nodes ...`: its status and what it printed."""
    settings = {
        "MONGO_URL": mongo_url, "MONGO_DATABASE": world.db.name, "KAFKA_URL": "unused", "OBJECTS_URL": "file:///unused",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"LUTHIER_{name}", value)

    def run(*words: str) -> tuple[int, str]:
        status = admin.main(["nodes", *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


async def node_of(world: World) -> Doc:
    node = await world.db["nodes"].find_one({"_id": NODE})
    assert node is not None
    return node


async def a_lost_node_with_a_run(world: World) -> JobStory:
    await world.supervisor().renew()
    story = await world.job()
    await world.place(story)
    assert (await advance(world.db, Kind.NODE, NODE, f.NodeLost(), actor=SCHEDULER)).applied
    return story


async def lose_run(story: JobStory) -> None:
    lost = f.RunLost(reason=FailureReason.LEASE_EXPIRED, last_step=None)
    assert (await story.tell(lost, attempt=1)).applied


async def test_a_lost_node_is_forgotten_when_its_runs_are_lost_and_joins_again(world: World, ask: Ask) -> None:
    story = await a_lost_node_with_a_run(world)
    status, said = await asyncio.to_thread(ask, "list")
    assert (status, f"{NODE}  trainer  lost  1 of 1 slots held  renewed 2" in said) == (0, True)
    status, said = await asyncio.to_thread(ask, "forget", NODE)
    assert (status, story.id in said) == (1, True), "its run may still go on"

    await lose_run(story)
    assert await asyncio.to_thread(ask, "forget", NODE) == (0, f"{NODE} has left, and its slots are free\n")
    node = await node_of(world)
    assert (node["phase"], node["slots"][0]["holder"], node["seq"]) == ("left", None, 3)
    used = await world.db["usage"].find_one({"job": story.id, "attempt": 1})
    assert used is not None
    assert (used["node"], used["slots"], used["to"]) == (NODE, [0], node["renewed_at"])

    await world.supervisor().renew()
    back = await node_of(world)
    assert (back["phase"], back["slots"][0]["holder"], back["seq"]) == ("live", None, 4)
    assert [entry["type"] for entry in back["outbox"]] == ["NodeJoined", "NodeLost", "NodeLeft", "NodeJoined"]
    await world.place(story, attempt=2)


async def test_a_node_that_died_while_it_stopped_gives_its_slots_back(world: World, ask: Ask) -> None:
    story = await a_lost_node_with_a_run(world)
    await lose_run(story)
    assert (await advance(world.db, Kind.NODE, NODE, f.NodeLeft(), actor=SCHEDULER)).applied
    assert (await node_of(world))["slots"][0]["holder"] is not None
    status, _ = await asyncio.to_thread(ask, "forget", NODE)
    node = await node_of(world)
    assert (status, node["phase"], node["slots"][0]["holder"], node["seq"]) == (0, "left", None, 3)


async def test_slots_that_led_to_no_placement_are_not_billed_when_their_node_is_forgotten(
    world: World, ask: Ask
) -> None:
    await world.supervisor(trainer_cpu_slots=2).renew()
    story = await world.job()
    await world.place(story)
    await world.claim(story.id, 1, slot=1, token="stray")
    assert (await advance(world.db, Kind.NODE, NODE, f.NodeLost(), actor=SCHEDULER)).applied
    await world.db["jobs"].update_one({"_id": story.id}, {"$set": {"phase": "succeeded"}})
    status, _ = await asyncio.to_thread(ask, "forget", NODE)
    assert status == 0
    assert [row["slots"] async for row in world.db["usage"].find({"job": story.id})] == [[0]]


async def test_a_live_node_and_an_unknown_one_are_not_forgotten(world: World, ask: Ask) -> None:
    await world.supervisor().renew()
    status, said = await asyncio.to_thread(ask, "forget", NODE)
    assert (status, "is live" in said) == (1, True)
    status, said = await asyncio.to_thread(ask, "forget", "nobody")
    assert (status, said) == (1, "luthier admin: there is no node nobody\n")
    assert (await node_of(world))["phase"] == "live"
