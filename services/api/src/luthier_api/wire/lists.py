"""Lists as clients page through them: `has_more` is always there, the cursor is the last item's id."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

Wire = dict[str, Any]


def list_object(items: Sequence[Wire], *, has_more: bool) -> Wire:
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def unix(at: datetime | None) -> int | None:
    """Whole seconds, rounded down: some clients refuse fractions."""
    return None if at is None else int(at.timestamp())
