"""`/v1/fine_tuning/validate` and `/v1/fine_tuning/capacity`: our own, for who wants to know before creating."""

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from luthier_api.deps import Services
from luthier_api.dialects.openai.create import CreateJob, wanted_job
from luthier_api.domain import Scope
from luthier_api.errors import ApiError
from luthier_api.services.validation import Plan, mistake_of
from luthier_api.wire.capacity import MAX_JOBS, CapacityObject, capacity_object, counts_object, project_object
from luthier_api.wire.validation import ValidationObject, validation_object

RETRY_AFTER_S = 2


class PlanningController(Controller):
    path = "/fine_tuning"
    tags = ("Fine-tuning",)

    @post(
        "/validate",
        operation="validate_fine_tuning_job",
        summary="Say what a create would do, and make nothing",
        scope=Scope.JOBS_READ,
        status_code=200,
    )
    async def validate(
        self,
        data: JSONBody[CreateJob],
        services: NamedDependency[Services],
    ) -> Response[ValidationObject]:
        """The body is a create's; one of another shape is refused as there. `errors` lists what a create would refuse
        and what is wrong with the files' lines. What only the job's own base can tell (rows too long for it, or that
        its template refuses) the job says when it checks its files. While a file has not been read the answer is
        `pending` and carries `retry-after`.
        """
        try:
            plan = await services.validation.plan(wanted_job(data))
        except ApiError as error:
            plan = Plan([mistake_of(error)])
        headers = {"retry-after": str(RETRY_AFTER_S)} if plan.is_pending else {}
        return Response(validation_object(plan), headers=headers)

    @get(
        "/capacity",
        operation="retrieve_fine_tuning_capacity",
        summary="Show slots, queue and the models that can be tuned",
        scope=Scope.JOBS_READ,
    )
    async def capacity(self, services: NamedDependency[Services]) -> CapacityObject:
        """Of other projects' jobs only the numbers are told."""
        store = services.capacity
        project = project_object(await store.count_own(), await store.read_waiting(MAX_JOBS), services.view)
        counts = counts_object(await store.count_all())
        return capacity_object(await store.read_trainers(), counts, project, await store.list_bases())
