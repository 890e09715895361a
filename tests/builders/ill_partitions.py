"""Writers to a broker that has trouble with one partition."""

import asyncio
from collections.abc import Sequence

from luthier_common.kit.errors import TransientError
from luthier_common.kit.stream import Message, Part, Writer

WITHOUT_LEADER_S = 6.0


class Leaderless(Writer):
    """One partition has no leader until `has_leader`: a send to it is tried for a while, then given up."""

    def __init__(self, url: str, part: Part) -> None:
        super().__init__(url)
        self._part = part
        self.has_leader = False
        self.num_tries = 0

    async def send(self, topic: str, partition: int, messages: Sequence[Message]) -> list[int]:
        if Part(topic, partition) == self._part and not self.has_leader:
            self.num_tries += 1
            await asyncio.sleep(WITHOUT_LEADER_S)
            raise TransientError("the broker did not store the batch: LeaderNotAvailableError")
        return await super().send(topic, partition, messages)


class AnswersLost(Writer):
    """Every other send is stored, and its answer is lost."""

    num_sends = 0

    async def send(self, topic: str, partition: int, messages: Sequence[Message]) -> list[int]:
        offsets = await super().send(topic, partition, messages)
        self.num_sends += 1
        if self.num_sends % 2:
            raise TransientError("the broker did not store the batch: TimeoutError")
        return offsets
