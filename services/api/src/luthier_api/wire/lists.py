"""Lists as clients page through them: `has_more` is always there, the cursor is the last item's id."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar

Wire = dict[str, Any]
Item = TypeVar("Item")


class ListObject(TypedDict, Generic[Item]):
    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedObject(TypedDict):
    id: str
    object: str
    deleted: Literal[True]


def list_object(items: Sequence[Item], *, has_more: bool) -> ListObject[Item]:
    return {
        "object": "list",
        "data": list(items),
        "first_id": _id_of(items[0]) if items else None,
        "last_id": _id_of(items[-1]) if items else None,
        "has_more": has_more,
    }


def _id_of(item: Any) -> str:
    return str(item["id"])


def unix(at: datetime) -> int:
    """Whole seconds, rounded down: some clients refuse fractions."""
    return int(at.timestamp())


def unix_or_none(at: datetime | None) -> int | None:
    return None if at is None else unix(at)
