"""The end of a job that has ended: gone for everybody at once, its bytes let go, its model kept unless asked."""

from luthier_api.domain import Scope
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode
from luthier_api.services.jobs import JobService
from luthier_api.services.models import ModelService
from luthier_api.store import Repository
from luthier_api.store.deletion import let_go
from luthier_common.contract.ids import canonical_id
from luthier_common.contract.lifecycle import JOB
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc


class JobDeletion:
    """Deletes jobs of one principal, for one request."""

    def __init__(self, repository: Repository, jobs: JobService, models: ModelService) -> None:
        self._repository = repository
        self._jobs = jobs
        self._models = models

    async def delete(self, job_id: str, *, with_model: bool, is_retry: bool) -> str:
        """The fact comes first: what a crash leaves is let go by the sweep. The model goes before it, so that a client
        who asks again after a crash still finds the job.
        """
        if with_model:
            self._check_may_delete_models()
            job = await self._repository.find_job(canonical_id(job_id))
            if job is not None and JOB.is_final(job["phase"]):
                await self._delete_model(job)
        await failpoint("deletion.before_fact")
        deleted = await self._jobs.delete(job_id, is_retry=is_retry)
        await failpoint("deletion.before_release")
        await let_go(self._repository.db, deleted, self._repository.actor)
        return str(deleted["_id"])

    def _check_may_delete_models(self) -> None:
        if not self._repository.principal.may(Scope.MODELS_WRITE):
            message = f"This API key lacks the scope {Scope.MODELS_WRITE}."
            raise ApiError(ErrorCode.MISSING_SCOPE, message, param="delete_model", headers=NO_RETRY)

    async def _delete_model(self, job: Doc) -> None:
        """Unless it was deleted before."""
        try:
            if (name := job.get("fine_tuned_model")) is not None:
                await self._models.delete(name)
        except ApiError as error:
            if error.error is not ErrorCode.MODEL_NOT_FOUND:
                raise
