"""What processes tell each other and the operators, where a part of the database refuses."""

import pytest
from pymongo.errors import OperationFailure

from builders.metrics import shown
from builders.waiting import until
from luthier_api.observer import SIZES_EVERY, Observer
from luthier_api.rates import Windows
from luthier_api.store.rates import share_windows
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import configure_failpoints
from luthier_common.kit.mongo import Database


async def test_what_was_counted_beside_a_failure_is_not_counted_again(db: Database) -> None:
    windows = Windows(lambda: 600.0)
    for name in ("good", "bad", "bad"):
        windows.take(name, 10)
    await db["rate_windows"].insert_one({"_id": "bad/10", "count": "no number"})
    for _ in range(3):
        with pytest.raises(OperationFailure):
            await share_windows(db, windows)
    row = await db["rate_windows"].find_one({"_id": "good/10"})
    assert row is not None
    assert row["count"] == 1
    await db["rate_windows"].delete_one({"_id": "bad/10"})
    await share_windows(db, windows)
    row = await db["rate_windows"].find_one({"_id": "bad/10"})
    assert row is not None
    assert row["count"] == 2


async def test_a_measurement_that_fails_is_not_tried_again_at_once(db: Database) -> None:
    await db["objects"].drop()
    await db["one"].insert_one({})
    await db.command("create", "objects", viewOn="one", pipeline=[{"$set": {"bytes": {"$divide": [1, 0]}}}])
    observer = Observer(db, "api-1", every_s=5)
    for _ in range(2):
        with pytest.raises(OperationFailure):
            await observer.look()
        for _ in range(SIZES_EVERY - 1):
            await observer.look()


async def test_who_measured_and_cannot_renew_says_nothing_once_another_may_measure(db: Database) -> None:
    observer = Observer(db, "api-1", every_s=2)
    await observer.look()
    assert shown("luthier.outbox.age")

    async def is_silent() -> bool:
        with pytest.raises(TransientError):
            await observer.look()
        return not shown("luthier.outbox.age")

    configure_failpoints("leases.after_acquire=raise")
    try:
        await until(is_silent, what="silence")
    finally:
        configure_failpoints()


async def test_who_measured_and_hangs_falls_silent_by_itself(db: Database) -> None:
    observer = Observer(db, "api-1", every_s=2)
    for _ in range(2):
        await observer.look()
        assert shown("luthier.jobs")

        async def is_silent() -> bool:
            return not any(shown(name) for name in ("luthier.jobs", "luthier.rooms", "luthier.objects.size"))

        await until(is_silent, what="silence")
