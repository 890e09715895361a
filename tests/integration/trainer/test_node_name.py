"""A node's name is one trainer's: a second one of the same name does not start, and who lost it touches nothing."""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from builders.jobs import JobStory
from builders.trainer_node import DEAF, NODE, World, working
from builders.waiting import until
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import NodeLost
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Doc
from luthier_trainer.domain import NameTakenError, claims_of
from luthier_trainer.executor import LocalExecutor
from luthier_trainer.supervisor import Supervisor
from luthier_trainer.workplace import Workplace

pytestmark = pytest.mark.timeout(120)
SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")


def trainer_in(world: World, home: str, command: tuple[str, ...] = SLEEPS, **changes: Any) -> Supervisor:
    settings = world.settings(home=world.root / home, **({"pause_budget_s": 1.0} | changes))
    workplace = Workplace(settings.home, NODE)
    return Supervisor(world.store(settings), world.objects, workplace, LocalExecutor(command), settings)


async def node_of(world: World) -> Doc:
    node = await world.db["nodes"].find_one({"_id": NODE})
    assert node is not None
    return node


async def take_over(trainer: Supervisor) -> None:
    """It asks for its name until it has it."""

    async def has_joined() -> bool:
        try:
            await trainer.renew()
        except TransientError:
            return False
        return True

    await until(has_joined, every_s=0.1, what="the node's name")


async def after_an_outage_of_the_database(world: World) -> None:
    """Of minutes, in which nobody could renew."""
    long_ago = (await node_of(world))["renewed_at"] - timedelta(minutes=5)
    await world.db["nodes"].update_one({"_id": NODE}, {"$set": {"renewed_at": long_ago}})


async def is_there(home: Path, name: str) -> bool:
    return any(home.glob(f"trainer/{NODE}/*/{name}"))


async def a_run(world: World) -> JobStory:
    story = await world.job()
    await world.place(story)

    async def has_lease() -> bool:
        return (await story.doc()).get("lease") is not None

    await until(has_lease, what="a run under its lease")
    return story


async def test_a_second_trainer_of_a_name_does_not_start_and_the_first_ones_run_goes_on(world: World) -> None:
    async with working(trainer_in(world, "first")) as first:
        story = await a_run(world)
        second = trainer_in(world, "second")

        async def refusal() -> str | None:
            try:
                await second.renew()
            except TransientError:
                return None  # the first one may have died: it is waited for
            except NameTakenError as error:
                return str(error)
            raise AssertionError("the second one joined")

        said = await until(refusal, what="a refusal")
        await second.look()
        await second.stop()
        assert said == f"another trainer works as {NODE}: LUTHIER_TRAINER_NODE must be a name of its own for each"
        assert [key[0] for key in first._runs] == [story.id]
        doc, node = await story.doc(), await node_of(world)
        assert (doc["phase"], doc["attempt"], doc["strikes"]) == ("placed", 1, 0)
        assert (node["phase"], node["slots"][0]["holder"]["job"]) == ("live", story.id)


async def test_the_service_itself_says_so_and_ends(world: World, mongo_url: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LUTHIER_HOME": str(tmp_path / "second"),
        "LUTHIER_MONGO_URL": mongo_url,
        "LUTHIER_MONGO_DATABASE": world.db.name,
        "LUTHIER_KAFKA_URL": "127.0.0.1:1",
        "LUTHIER_OBJECTS_URL": world.settings().objects_url,
        "LUTHIER_TRAINER_NODE": NODE,
        "LUTHIER_TRAINER_DEVICE": "cpu",
        "LUTHIER_RENEW_S": "0.5",
    }
    async with working(trainer_in(world, "first")):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "luthier_trainer", env=environment, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
    assert process.returncode == 1
    assert f"another trainer works as {NODE}".encode() in said


async def test_a_trainer_that_lost_its_disk_waits_for_its_own_name_and_gets_it(world: World) -> None:
    """A pod with an emptyDir dies and comes back: nobody can tell at once that it is not a second one."""
    await trainer_in(world, "first").renew()
    back = trainer_in(world, "second", lease_ttl_s=2.0)
    with pytest.raises(TransientError, match="taken over when that one is silent for 2 s"):
        await back.renew()
    await take_over(back)
    assert (await node_of(world))["instance"] == back._store.instance


async def test_a_trainer_that_starts_again_in_its_home_need_not_wait(world: World) -> None:
    await trainer_in(world, "first").renew()
    await trainer_in(world, "first").renew()
    assert [fact["type"] for fact in (await node_of(world))["outbox"]] == ["NodeJoined", "NodeJoined"]


async def test_a_node_of_an_earlier_version_is_waited_for_too(world: World) -> None:
    await trainer_in(world, "first").renew()
    await world.db["nodes"].update_one({"_id": NODE}, {"$unset": {"instance": "", "home": ""}})
    second = trainer_in(world, "second", lease_ttl_s=2.0)
    with pytest.raises(TransientError, match="or of an earlier version"):
        await second.renew()
    await take_over(second)


@pytest.mark.parametrize("is_new", [False, True])
async def test_who_renews_again_after_an_outage_of_the_database_keeps_its_name(world: World, is_new: bool) -> None:
    """Its last renewal is minutes old, or it had not come to its first one, when another one asks for the name."""
    first, second = trainer_in(world, "first"), trainer_in(world, "second")
    await first.renew()
    await after_an_outage_of_the_database(world)
    if is_new:
        await world.db["nodes"].update_one({"_id": NODE}, {"$set": {"renewed_at": None}})
    with pytest.raises(TransientError):
        await second.renew()
    await first.renew()
    with pytest.raises(NameTakenError):
        await second.renew()
    await first.renew()
    assert (await node_of(world))["instance"] == first._store.instance


async def test_a_run_that_is_being_saved_when_another_one_takes_the_name_is_not_called_lost(world: World) -> None:
    """A pod is replaced: the new one gets the name when the old one says that it leaves, and that one saves on."""
    first = trainer_in(world, "first", (sys.executable, "-c", DEAF), pause_budget_s=60.0)
    second = trainer_in(world, "second")
    async with working(first):
        story = await a_run(world)
        await until(lambda: is_there(world.root / "first", "ready"), within_s=30, what="a child at work")
        ((run, _),) = first._runs.values()
        stopping = asyncio.create_task(first.stop())

        async def has_left() -> bool:
            return (await node_of(world))["phase"] == "left"

        await until(has_left, what="an orderly leave")
        await second.renew()
        await second.look()
        assert (await story.doc())["phase"] == "placed"
        assert run._child is not None
        run._kill_overdue(run._child)
        await stopping
    doc = await story.doc()
    assert (doc["phase"], doc["strikes"]) == ("waiting", 0)
    (failed,) = [fact["data"] for fact in await world.facts(story.id) if fact["type"] == "RunFailed"]
    assert failed["preempted"]
    await second.look()
    assert await world.holder() is None


async def test_a_node_that_is_called_lost_while_it_joins_joins_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_in(world, "first")
    join = trainer._store.join

    async def join_and_be_lost(*args: Any, **names: Any) -> Any:
        answer = await join(*args, **names)
        assert (await advance(world.db, Kind.NODE, NODE, NodeLost(), actor=Actor(room="scheduler"))).applied
        monkeypatch.undo()
        return answer

    monkeypatch.setattr(trainer._store, "join", join_and_be_lost)
    with pytest.raises(TransientError, match="called lost while it joined"):
        await trainer.renew()
    await trainer.renew()
    assert (await node_of(world))["phase"] == "live"


async def test_who_lost_the_name_meanwhile_stops_and_leaves_the_others_node_alone(world: World) -> None:
    first, second = trainer_in(world, "first"), trainer_in(world, "second", lease_ttl_s=2.0)
    await first.renew()
    await take_over(second)
    story = await world.job()
    await world.place(story)
    with pytest.raises(NameTakenError):
        await first.renew()
    await first.look()
    assert not first._runs
    (claim,) = claims_of((await node_of(world))["slots"])
    await first._store.free(claim)
    await first.stop()
    node = await node_of(world)
    assert (node["phase"], node["slots"][0]["holder"]["job"]) == ("live", story.id)
    assert await world.db["usage"].count_documents({}) == 0, "the run goes on: it is no one's to bill yet"


async def test_one_process_of_a_name_does_not_renew_the_lease_of_another(world: World) -> None:
    await trainer_in(world, "first").renew()
    story = await world.job()
    await world.place(story)
    first, second = world.store(), world.store()
    assert await first.renew_lease(story.id, 1) == "run"
    assert await second.renew_lease(story.id, 1) is None
    assert await first.renew_lease(story.id, 1) == "run"
