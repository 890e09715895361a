"""The event list of a job, read from the projection only. What lies behind a gap is not shown before it is filled."""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from luthier_api.store.repository import Repository
from luthier_common.contract.topics import Kind
from luthier_common.kit.mongo import Database, Doc

FIELDS = {"type": 1, "thing": 1, "seq": 1, "generation": 1, "at": 1, "body": 1, "terminal": 1}
HEAD_TTL_S = 60.0
MAX_HEADS = 10_000


class Heads:
    """How far the rows of each job are known to have no gap: the rows below are not counted again.

    Rows are never taken away, so what had no gap has none later. It is looked at anew once a minute all the same, for
    a database that was put back to an older state.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def head(self, job_id: str) -> int:
        """The last seq before the first gap."""
        return await self.head_above(job_id, [])

    async def head_above(self, job_id: str, newest: Sequence[Doc]) -> int:
        """The same, when the newest rows, newest first, have been read already: mostly they touch what is known."""
        known = self._look_up(job_id)
        if not newest:
            newest = await self._db["events"].find(_of(job_id), {"seq": 1, "_id": 0}).sort("seq", -1).to_list(1)
        if not newest:
            return 0
        last = int(newest[0]["seq"])
        lowest = last - len(newest) + 1
        has_no_gap = newest[-1]["seq"] == lowest
        if last <= known or (has_no_gap and lowest <= known + 1):
            return self._remember(job_id, max(last, known))
        # Up to `last` only: a row that arrives meanwhile must not make up for a missing one.
        new: Doc = _of(job_id) | {"seq": {"$gt": known, "$lte": last}}
        if await self._db["events"].count_documents(new) == last - known:
            return self._remember(job_id, last)
        head = known
        async for row in self._db["events"].find(new, {"seq": 1, "_id": 0}).sort("seq", 1):
            if row["seq"] != head + 1:
                break
            head = int(row["seq"])
        return self._remember(job_id, head)

    def _look_up(self, job_id: str) -> int:
        head, until_s = self._known.get(job_id, (0, 0.0))
        if until_s < time.monotonic():
            self._known.pop(job_id, None)
            return 0
        return head

    def _remember(self, job_id: str, head: int) -> int:
        _, until_s = self._known.pop(job_id, (0, time.monotonic() + HEAD_TTL_S))
        self._known[job_id] = head, until_s
        if len(self._known) > MAX_HEADS:
            self._known.popitem(last=False)
        return head


class EventStore:
    """Rows of jobs that the caller has found behind its wall."""

    def __init__(self, repository: Repository) -> None:
        self._db = repository.db
        self._wall = {"org": repository.principal.org, "project": repository.principal.project}

    async def rows_from(self, job_id: str, seq: int, most: int) -> list[Doc]:
        """Rows from `seq` on, oldest first, up to the first gap."""
        rows = await self._find(job_id, {"seq": {"$gte": seq}}, 1, most)
        contiguous = (number for number, row in enumerate(rows) if row["seq"] != seq + number)
        return rows[: next(contiguous, len(rows))]

    async def rows_down(self, job_id: str, seq: int | None, most: int) -> list[Doc]:
        """Rows from `seq`, or from the newest on, newest first."""
        return await self._find(job_id, {} if seq is None else {"seq": {"$lte": seq}}, -1, most)

    async def facts(self, job_id: str, fact: str, seqs: Mapping[str, int], order: int, most: int) -> list[Doc]:
        """Rows of one type of fact with seqs in a range, such as `{"$lte": 7}`."""
        return await self._find(job_id, {"type": fact, "seq": dict(seqs)}, order, most)

    async def _find(self, job_id: str, query: Doc, order: int, most: int) -> list[Doc]:
        rows = self._db["events"].find(_of(job_id) | query | self._wall, FIELDS)
        return await rows.sort("seq", order).limit(most).batch_size(most + 1).to_list(most)


def _of(job_id: str) -> Doc:
    return {"kind": str(Kind.JOB), "thing": job_id}
