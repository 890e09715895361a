"""Leases in database time: one owner at a time, renewals keep the epoch, a change of owner raises it."""

import asyncio

from builders.waiting import until
from luthier_common.kit import leases
from luthier_common.kit.mongo import Database


async def test_of_many_who_ask_at_once_one_gets_the_lease(db: Database) -> None:
    got = await asyncio.gather(*(leases.acquire(db, "work", f"owner-{n}", 30) for n in range(10)))
    assert len([lease for lease in got if lease]) == 1


async def test_a_renewal_keeps_the_epoch_and_an_expired_lease_goes_to_the_next(db: Database) -> None:
    first = await leases.acquire(db, "work", "one", 0.2)
    again = await leases.acquire(db, "work", "one", 0.2)
    assert first == again
    taken = await until(lambda: leases.acquire(db, "work", "two", 30))
    assert isinstance(taken, leases.Lease)
    assert first is not None
    assert taken.epoch == first.epoch + 1
    assert await leases.acquire(db, "work", "one", 30) is None


async def test_a_released_lease_is_free_at_once_and_a_late_release_takes_nothing(db: Database) -> None:
    first = await leases.acquire(db, "work", "one", 30)
    assert first is not None
    await leases.release(db, first)
    second = await leases.acquire(db, "work", "two", 30)
    assert second is not None
    await leases.release(db, first)
    assert await leases.acquire(db, "work", "three", 30) is None


async def test_many_are_renewed_at_once_and_a_lost_one_is_noticed(db: Database) -> None:
    mine = [await leases.acquire(db, name, "one", 0.3) for name in ("a", "b")]
    held = [lease for lease in mine if lease is not None]
    assert await leases.renew(db, held, 30)
    assert await leases.acquire(db, "a", "two", 30) is None
    await leases.release(db, held[0])
    assert await leases.acquire(db, "a", "two", 30) is not None
    assert not await leases.renew(db, held, 30)
    assert await leases.acquire(db, "a", "one", 30) is None, "what another holds is not taken by renewing"
    assert await leases.acquire(db, "b", "two", 30) is None, "the other one was renewed"
