"""What happened to a job, from the projected stream only: lines and checkpoints, contiguous, newest first."""

from luthier_api.domain import Page, View
from luthier_api.errors import bad_cursor
from luthier_api.store import Repository
from luthier_api.wire.checkpoints import CheckpointObject, checkpoint_object, seq_of
from luthier_api.wire.events import EventObject, Place, place_of, render
from luthier_api.wire.lists import ListObject, list_object
from luthier_common.kit.mongo import Doc


class EventService:
    """Events of jobs of one principal, for one request."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def list_events(self, job: Doc, page: Page) -> ListObject[EventObject]:
        place = self._place(job, page)
        last = await self._repository.last_seq(job["_id"])
        up_to = last if place is None or page.ascending else min(last, place.seq)
        start = (place.seq if place else 1) if page.ascending else None
        lines: list[EventObject] = []
        async for row in self._repository.event_rows(job["_id"], up_to_seq=up_to, ascending_from=start):
            rendered = render(row)
            if place is not None and row["seq"] == place.seq:
                rendered = rendered[place.number :] if page.ascending else rendered[: place.number - 1]
            lines += rendered if page.ascending else reversed(rendered)
            if len(lines) > page.limit:
                break
        return list_object(lines[: page.limit], has_more=len(lines) > page.limit)

    async def list_checkpoints(self, job: Doc, page: Page, view: View) -> ListObject[CheckpointObject]:
        up_to = await self._repository.last_seq(job["_id"])
        if page.after is not None:
            seq = seq_of(page.after, job["_id"])
            if seq is None:
                raise bad_cursor("a checkpoint of this job")
            up_to = min(up_to, seq - 1)
        found: list[CheckpointObject] = []
        org_name = self._repository.principal.org_name
        async for row in self._repository.event_rows(job["_id"], up_to_seq=up_to, fact="CheckpointSaved"):
            found.append(checkpoint_object(row, job, org_name, view))
            if len(found) > page.limit:
                break
        return list_object(found[: page.limit], has_more=len(found) > page.limit)

    @staticmethod
    def _place(job: Doc, page: Page) -> Place | None:
        if page.after is None:
            return None
        place = place_of(page.after, job["_id"])
        if place is None:
            raise bad_cursor("an event of this job")
        return place
