"""Stored responses: the only place that keeps what was said to models and what they answered, for a limited time."""

from dataclasses import dataclass

import msgspec

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.store.repository import Repository
from luthier_common.kit.mongo import Doc

MAX_TURNS = 1000
MAX_BYTES = 8 * 1024 * 1024
"""A conversation that is longer on its way to an engine is not read: no base has room for it, and engines take no more
than this and the largest request together."""
ITEM_BYTES = 64
"""What a message takes beside its text."""


@dataclass(frozen=True)
class Conversation:
    """Responses, oldest first, and how many messages there were before them that are not read."""

    turns: list[Doc]
    num_left_out: int = 0

    @property
    def num_messages(self) -> int:
        return self.num_left_out + sum(map(_count_messages, self.turns))


class ResponseStore:
    """The responses behind one principal's wall."""

    def __init__(self, repository: Repository) -> None:
        self._responses = repository.db["responses"]
        self._wall = repository.wall
        self._owned = repository.owned

    async def insert(self, response: Doc) -> None:
        await self._responses.insert_one({**response, **self._owned})

    async def find(self, response_id: str) -> Doc | None:
        """Expired ones are gone, whether or not the server has removed them yet."""
        live = {"_id": response_id, "$expr": {"$gt": ["$expires_at", "$$NOW"]}}
        return await self._responses.find_one({**live, **self._wall})

    async def find_conversation(self, last_id: str, *, is_cut: bool) -> Conversation | None:
        """The response and all that it goes on from; None when one is gone.

        What is too long loses its oldest turns where it may be cut; ApiError where not.
        """
        turns: list[Doc] = []
        num_bytes = 0
        wanted: str | None = last_id
        while wanted is not None:
            if (turn := await self.find(wanted)) is None:
                return None
            num_bytes += _count_bytes(turn)
            if len(turns) == MAX_TURNS or num_bytes > MAX_BYTES:
                if is_cut:
                    return Conversation(turns[::-1], turn.get("num_before", 0) + _count_messages(turn))
                message = "The conversation is too long to go on with; begin another one."
                raise ApiError(ErrorCode.TOO_LARGE, message, param="previous_response_id")
            turns.append(turn)
            wanted = turn["previous"]
        return Conversation(turns[::-1])

    async def delete(self, response_id: str) -> bool:
        deleted = await self._responses.delete_one({"_id": response_id, **self._wall})
        return deleted.deleted_count == 1


def _count_messages(turn: Doc) -> int:
    return len(turn["input"]) + len(turn["output"])


def _count_bytes(turn: Doc) -> int:
    items = [*turn["input"], *turn["output"]]
    texts = [part["text"] for item in items for part in item["content"]]
    return ITEM_BYTES * len(items) + sum(map(len, map(msgspec.json.encode, texts)))
