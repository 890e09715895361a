"""Stored responses: the only place that keeps what was said to models and what they answered, for a limited time."""

from luthier_api.errors import ApiError, ErrorCode
from luthier_api.store.repository import Repository
from luthier_common.kit.mongo import Doc

MAX_TURNS = 1000
MAX_CHARACTERS = 16 * 1024 * 1024
"""A conversation longer than this is not read: no base has room for it, and it must fit the memory."""


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

    async def find_conversation(self, last_id: str) -> list[Doc] | None:
        """The response and all that it goes on from, oldest first; None when one is gone. ApiError when too long."""
        turns: list[Doc] = []
        num_characters = 0
        wanted: str | None = last_id
        while wanted is not None:
            if (turn := await self.find(wanted)) is None:
                return None
            turns.append(turn)
            num_characters += _count_characters(turn)
            if len(turns) > MAX_TURNS or num_characters > MAX_CHARACTERS:
                message = "The conversation is too long to go on with; begin another one."
                raise ApiError(ErrorCode.TOO_LARGE, message, param="previous_response_id")
            wanted = turn["previous"]
        return turns[::-1]

    async def delete(self, response_id: str) -> bool:
        deleted = await self._responses.delete_one({"_id": response_id, **self._wall})
        return deleted.deleted_count == 1


def _count_characters(turn: Doc) -> int:
    return sum(len(part["text"]) for item in [*turn["input"], *turn["output"]] for part in item["content"])
