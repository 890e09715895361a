"""`/v1/fine_tuning/jobs/{id}/events/stream`: an extension, for clients that want to be told instead of asking again."""

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from luthier_api.deps import AnyRequest, Services
from luthier_api.domain import Scope
from luthier_api.services.events import read_place

LAST_SEEN = "last-event-id"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class FollowController(Controller):
    path = "/fine_tuning/jobs"
    tags = ("Fine-tuning",)

    @get(
        "/{job_id:str}/events/stream",
        operation="follow_fine_tuning_events",
        summary="Follow what happens to a job, oldest first",
        scope=Scope.JOBS_READ,
        media_type="text/event-stream",
    )
    async def follow(
        self,
        request: AnyRequest,
        job_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
    ) -> Stream:
        """Server-sent events. Each carries the event's id; with `Last-Event-ID`, or `after`, the stream goes on there.

        After the job's last event comes one named `done`, and the stream ends.
        """
        found = await services.jobs.find_id(job_id)
        place = read_place(request.headers.get(LAST_SEEN) or after, found)
        return Stream(services.following.follow(found, place), media_type="text/event-stream", headers=HEADERS)
