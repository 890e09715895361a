"""How far the event list is behind is said by who projects the partitions, and by nobody else."""

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from builders.metrics import shown
from builders.waiting import until
from luthier_common.contract.topics import TOPICS
from luthier_common.journal.projector import LEASE_S, POSITIONS, Projector
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import configure_failpoints
from luthier_common.kit.mongo import Database
from luthier_common.kit.stream import Reader, ensure_topics

LAG = "luthier.projector.lag"


@pytest.fixture
async def projector(db: Database, kafka_url: str) -> AsyncIterator[Projector]:
    """One that holds every partition and says how far each topic is behind."""
    await ensure_topics(kafka_url)
    reader = Reader(kafka_url)
    projector = Projector(db, reader, owner="one", clock=SystemClock())

    async def has_said() -> bool:
        await projector.step()
        return set(shown(LAG)) == {(topic.name,) for topic in TOPICS.values()}

    await until(has_said, what="the lag of every topic")
    yield projector
    await reader.close()


async def test_a_projector_whose_partitions_were_taken_over_says_nothing(db: Database, projector: Projector) -> None:
    later = {"$dateAdd": {"startDate": "$$NOW", "unit": "minute", "amount": 1}}
    taken = {"owner": "other", "epoch": {"$add": ["$epoch", 1]}, "until": later}
    await db[POSITIONS].update_many({}, [{"$set": taken}])

    async def is_silent() -> bool:
        await projector.step()
        return shown(LAG) == {}

    await until(is_silent, what="silence")


async def test_a_projector_that_cannot_renew_says_nothing_once_another_may_hold_its_partitions(
    projector: Projector,
) -> None:
    async def is_silent() -> bool:
        with suppress(TransientError):
            await projector.step()
        return shown(LAG) == {}

    configure_failpoints("leases.after_renew=raise")
    try:
        await until(is_silent, within_s=3 * LEASE_S, every_s=0.1, what="silence")
    finally:
        configure_failpoints()


async def test_a_projector_that_ends_says_nothing(projector: Projector) -> None:
    await projector.release()
    assert shown(LAG) == {}
