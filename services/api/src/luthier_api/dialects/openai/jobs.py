"""`/v1/fine_tuning/jobs`."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from luthier_api.around.idempotency import STORED
from luthier_api.deps import AnyRequest, Services
from luthier_api.dialects.openai.create import CreateJob, wanted_job
from luthier_api.dialects.openai.fields import MAX_METADATA
from luthier_api.domain import ASCENDING, Order, Page, Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.store.filters import JobFilter
from luthier_api.wire.checkpoints import CheckpointObject
from luthier_api.wire.events import EventObject
from luthier_api.wire.jobs import JobObject, job_object
from luthier_api.wire.lists import DeletedObject, ListObject, list_object

MAX_PAGE = 100
_METADATA = re.compile(r"metadata\[(.+)\]", re.DOTALL)
MAX_UNIX_TIME = 4_102_444_800
Limit20 = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
UnixTime = Annotated[int | None, QueryParameter(ge=0, le=MAX_UNIX_TIME)]
Search = Annotated[str | None, QueryParameter(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


class JobsController(Controller):
    path = "/fine_tuning/jobs"
    tags = ("Fine-tuning",)

    @post(
        operation="create_fine_tuning_job",
        summary="Create a job",
        scope=Scope.JOBS_WRITE,
        status_code=200,
        answer=STORED,
        repeat=True,
    )
    async def create(self, data: JSONBody[CreateJob], services: NamedDependency[Services]) -> JobObject:
        return job_object(await services.creation.create(wanted_job(data), await services.sent()), services.view)

    @get(
        operation="list_fine_tuning_jobs",
        summary="List jobs, newest first",
        scope=Scope.JOBS_READ,
        filters_metadata=True,
    )
    async def list(
        self,
        request: AnyRequest,
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Limit20 = 20,
        status: FromQuery[JobStatus | None] = None,
        model: FromQuery[str | None] = None,
        created_after: UnixTime = None,
        created_before: UnixTime = None,
        search: Search = None,
    ) -> ListObject[JobObject]:
        view = services.view
        metadata, without = read_metadata_filter(request.query_params.multi_items())
        wanted = JobFilter(
            view.statuses(status) if status else (), model, created_after, created_before, search, metadata, without
        )
        found = await services.jobs.list(Page(limit, after), wanted)
        return list_object([job_object(job, view) for job in found[:limit]], has_more=len(found) > limit)

    @get("/{job_id:str}", operation="retrieve_fine_tuning_job", summary="Look at a job", scope=Scope.JOBS_READ)
    async def retrieve(self, job_id: FromPath[str], services: NamedDependency[Services]) -> JobObject:
        return job_object(await services.jobs.get(job_id), services.view)

    @delete(
        "/{job_id:str}",
        operation="delete_fine_tuning_job",
        summary="Delete a job that has ended",
        scope=Scope.JOBS_WRITE,
        status_code=200,
    )
    async def delete(
        self,
        job_id: FromPath[str],
        services: NamedDependency[Services],
        delete_model: FromQuery[bool] = False,
    ) -> DeletedObject:
        """An extension. The job is gone for everybody at once: retrieve, lists, events, checkpoints and verbs answer as
        if it had never been; its id stays a cursor of lists. A job that has not ended is refused with 409: cancel it
        first.

        With it go its checkpoints, also as models (`...:ckpt-step-N`) and as files, its logs and series, its
        `metadata` and the file with its metrics. Its data files are no longer kept for it: those that were deleted
        before lose their bytes, the others stay. The tuned model stays and answers, with the files that hold its
        weights, unless `delete_model=true`, for which the key needs the scope `models:write` too.

        What happened to the job stays in the event stream, which holds no texts.
        """
        gone = await services.deletion.delete(job_id, with_model=delete_model, is_retry=services.is_retry)
        return {"id": services.view.id(gone), "object": "fine_tuning.job", "deleted": True}

    @post(
        "/{job_id:str}/cancel",
        operation="cancel_fine_tuning_job",
        summary="Cancel a job",
        scope=Scope.JOBS_WRITE,
        status_code=200,
    )
    async def cancel(self, job_id: FromPath[str], services: NamedDependency[Services]) -> JobObject:
        return job_object(await services.jobs.cancel(job_id), services.view)

    @post(
        "/{job_id:str}/pause",
        operation="pause_fine_tuning_job",
        summary="Pause a job that is queued or running",
        scope=Scope.JOBS_WRITE,
        status_code=200,
    )
    async def pause(self, job_id: FromPath[str], services: NamedDependency[Services]) -> JobObject:
        return job_object(await services.jobs.pause(job_id, is_retry=services.is_retry), services.view)

    @post(
        "/{job_id:str}/resume",
        operation="resume_fine_tuning_job",
        summary="Resume a paused job",
        scope=Scope.JOBS_WRITE,
        status_code=200,
    )
    async def resume(self, job_id: FromPath[str], services: NamedDependency[Services]) -> JobObject:
        return job_object(await services.jobs.resume(job_id, is_retry=services.is_retry), services.view)

    @get(
        "/{job_id:str}/events",
        operation="list_fine_tuning_events",
        summary="List what happened to a job, newest first",
        scope=Scope.JOBS_READ,
    )
    async def list_events(
        self,
        job_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Limit20 = 20,
        order: FromQuery[Order] = "desc",
    ) -> ListObject[EventObject]:
        page = Page(limit, after, ascending=order in ASCENDING)
        return await services.job_events.list_events(await services.jobs.find_id(job_id), page)

    @get(
        "/{job_id:str}/checkpoints",
        operation="list_fine_tuning_job_checkpoints",
        summary="List a job's checkpoints, newest first",
        scope=Scope.JOBS_READ,
    )
    async def list_checkpoints(
        self,
        job_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 10,
        order: FromQuery[Order] = "desc",
    ) -> ListObject[CheckpointObject]:
        page = Page(limit, after, ascending=order in ASCENDING)
        return await services.job_events.list_checkpoints(await services.jobs.get(job_id), page)


def read_metadata_filter(query: Iterable[tuple[str, str]]) -> tuple[dict[str, str], bool]:
    """The pairs of `metadata[k]=v`, and whether `metadata=null` asks for jobs without metadata."""
    pairs: dict[str, str] = {}
    is_without = False
    for name, value in query:
        if match := _METADATA.fullmatch(name):
            pairs[match[1]] = value
        elif (name, value) == ("metadata", "null"):
            is_without = True
        elif name.startswith("metadata"):
            message = "Ask for metadata[key]=value, or for metadata=null."
            raise ApiError(ErrorCode.INVALID_VALUE, message, param=name[:100])
    if len(pairs) > MAX_METADATA:
        message = f"A job has at most {MAX_METADATA} pairs of metadata; so many may be asked for."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="metadata")
    return pairs, is_without
