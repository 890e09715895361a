"""How long a run waits for a server that is away, and how long that is counted."""

import pytest

from luthier_common.kit.objects import ObjectStoreUnavailableError
from luthier_trainer.insisting import Insist

CAP_S = 900.0


class Transfer:
    """Each try takes so many seconds; those that fail come first."""

    def __init__(self, tries_s: list[float], num_failing: int) -> None:
        self._tries_s = tries_s
        self._num_failing = num_failing
        self.num_tries = 0
        self.now_s = 0.0

    async def __call__(self) -> str:
        self.now_s += self._tries_s[self.num_tries]
        self.num_tries += 1
        if self.num_tries <= self._num_failing:
            raise ObjectStoreUnavailableError("503")
        return "stored"


async def test_a_long_transfer_that_fails_near_its_end_is_repeated() -> None:
    """16 of 20 minutes of a 60 GB checkpoint went well: the store was away for a second, not for 16 minutes."""
    transfer = Transfer([960.0, 1200.0], num_failing=1)
    assert await Insist(CAP_S, now_s=lambda: transfer.now_s)(transfer) == "stored"


async def test_a_server_that_stays_away_is_not_waited_for_longer_than_the_cap() -> None:
    transfer = Transfer([300.0] * 9, num_failing=9)
    with pytest.raises(ObjectStoreUnavailableError):
        await Insist(CAP_S, now_s=lambda: transfer.now_s)(transfer)
    assert transfer.num_tries == 4, "the first one, and those of 900 s from its failure"
