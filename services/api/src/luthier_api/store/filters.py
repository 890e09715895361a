"""What a list of jobs is narrowed by, as a query. Pure.

Ids begin with the time at which they were made, so a span of creation times is a span of ids: such a list begins to
read where it must, however many jobs there are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from luthier_common.contract.ids import JOB_PREFIX
from luthier_common.kit.mongo import Doc

SKEW_S = 3600
"""The clocks of this process and of the database differ by less."""


@dataclass(frozen=True)
class JobFilter:
    """`created_after` is inclusive, `created_before` is not; `search` is looked for in the suffix and model names."""

    statuses: tuple[str, ...] = ()
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    search: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    without_metadata: bool = False

    def query(self, *, late_by_s: float) -> Doc:
        """`late_by_s`: a job may be created so long after its id was reserved."""
        conditions: list[Doc] = []
        if self.statuses:
            conditions.append({"status": {"$in": list(self.statuses)}})
        if self.model is not None:
            conditions.append({"spec.model": self.model})
        if self.created_after is not None:
            conditions += [
                {"created_at": {"$gte": _at(self.created_after)}},
                {"_id": {"$gte": _first_id(self.created_after - late_by_s - SKEW_S)}},
            ]
        if self.created_before is not None:
            conditions += [
                {"created_at": {"$lt": _at(self.created_before)}},
                {"_id": {"$lt": _first_id(self.created_before + SKEW_S)}},
            ]
        if self.search is not None:
            holds = {"$regex": re.escape(self.search), "$options": "i"}
            conditions.append({"$or": [{name: holds} for name in ("spec.suffix", "spec.model", "fine_tuned_model")]})
        if self.without_metadata:
            conditions.append({"metadata": None})
        for key, value in self.metadata.items():
            # The first condition says nothing new; with it the index of jobs that have metadata may be used.
            pair = {"metadata": {"$elemMatch": {"k": key, "v": value}}}
            conditions += [{"metadata.k": {"$exists": True}}, pair]
        return {"$and": conditions} if conditions else {}


def _at(unix_s: float) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=unix_s)


def _first_id(unix_s: float) -> str:
    """An id that sorts before all that were made from this moment on."""
    return f"{JOB_PREFIX}{max(0, int(unix_s * 1000)):012x}"
