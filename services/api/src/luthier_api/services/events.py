"""What happened to a job, from the projected stream only: lines and checkpoints, contiguous."""

from luthier_api.domain import Page, View
from luthier_api.errors import bad_cursor
from luthier_api.store import Repository
from luthier_api.store.checkpoints import SAVED, stored_keys
from luthier_api.store.events import EventStore, Heads
from luthier_api.wire.checkpoints import CheckpointObject, checkpoint_object, seq_of
from luthier_api.wire.events import EventObject, Place, place_of, render
from luthier_api.wire.lists import ListObject, list_object
from luthier_common.kit.mongo import Doc


class EventService:
    """Events of jobs of one principal, for one request. A job is one that the caller has found."""

    def __init__(self, repository: Repository, heads: Heads, view: View) -> None:
        self._repository = repository
        self._view = view
        self._store = EventStore(repository)
        self._heads = heads

    async def list_events(self, job_id: str, page: Page) -> ListObject[EventObject]:
        """One page. What a cursor names was shown, so there is no gap below it, and nothing is counted again."""
        place = read_place(page.after, job_id)
        read = self._lines_up if page.ascending else self._lines_down
        lines = await read(job_id, place, page.limit + 1)
        return list_object(lines[: page.limit], has_more=len(lines) > page.limit)

    async def _lines_up(self, job_id: str, place: Place | None, wanted: int) -> list[EventObject]:
        lines: list[EventObject] = []
        seq, most = place.seq if place else 1, wanted + 1
        while len(lines) < wanted:
            rows = await self._store.rows_from(job_id, seq, most)
            lines += [line for row in rows for line in lines_after(row, place, self._view)]
            if len(rows) < most:
                break
            seq += most
        return lines

    async def _lines_down(self, job_id: str, place: Place | None, wanted: int) -> list[EventObject]:
        lines: list[EventObject] = []
        seq, most = place.seq if place else None, wanted + 1
        while len(lines) < wanted:
            rows = await self._store.rows_down(job_id, seq, most)
            if seq is None and rows and (head := await self._heads.head_above(job_id, rows)) < rows[0]["seq"]:
                rows = await self._store.rows_down(job_id, head, most)
            lines += [line for row in rows for line in _lines_before(row, place, self._view)]
            if len(rows) < most:
                break
            seq = rows[-1]["seq"] - 1
        return lines

    async def list_checkpoints(self, job: Doc, page: Page) -> ListObject[CheckpointObject]:
        cursor = None if page.after is None else seq_of(page.after, job["_id"])
        if page.after is not None and cursor is None:
            raise bad_cursor("a checkpoint of this job")
        seqs = {"$lte": await self._heads.head(job["_id"])}
        if cursor is not None:
            seqs |= {"$gt": cursor} if page.ascending else {"$lt": cursor}
        order, most = 1 if page.ascending else -1, page.limit + 1
        rows = await self._store.facts(job["_id"], SAVED, seqs, order, most)
        stored = await stored_keys(self._repository, [_key(row) for row in rows]) if rows else frozenset()
        org_name = self._repository.principal.org_name
        found = [checkpoint_object(row, job, org_name, self._view, is_stored=_key(row) in stored) for row in rows]
        return list_object(found[: page.limit], has_more=len(found) > page.limit)


def _key(checkpoint: Doc) -> str:
    """Where the bytes of a checkpoint are, or were."""
    return str(checkpoint["body"]["data"]["blob"]["key"])


def read_place(after: str | None, job_id: str) -> Place | None:
    """Where a cursor stands; ApiError when it is no event of this job."""
    place = None if after is None else place_of(after, job_id)
    if after is not None and place is None:
        raise bad_cursor("an event of this job")
    return place


def lines_after(row: Doc, place: Place | None, view: View) -> list[EventObject]:
    """The row's lines behind the place, oldest first."""
    lines = render(row, view)
    return lines[place.number :] if place is not None and row["seq"] == place.seq else lines


def _lines_before(row: Doc, place: Place | None, view: View) -> list[EventObject]:
    """The row's lines before the place, newest first."""
    lines = render(row, view)
    return (lines[: place.number - 1] if place is not None and row["seq"] == place.seq else lines)[::-1]
