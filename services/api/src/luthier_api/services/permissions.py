"""Permissions: a project lets others of its organisation call its checkpoints and tuned models."""

from collections.abc import Sequence

from luthier_api.domain import Page
from luthier_api.errors import ApiError, ErrorCode, not_found
from luthier_api.services.models import ModelService
from luthier_api.store import Repository
from luthier_api.store import permissions as store
from luthier_common.contract.ids import new_id
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc

PREFIX = "cp_"
MAX_PROJECTS = 100


class PermissionService:
    """Permissions for one project's models, for one request. Who may come in is the route's scope."""

    def __init__(self, repository: Repository, models: ModelService, clock: Clock) -> None:
        self._repository = repository
        self._models = models
        self._clock = clock

    async def create(self, name: str, project_ids: Sequence[str]) -> list[Doc]:
        """One permission for each project; a project that has one keeps it."""
        await self._models.check_own(name)
        unknown = await store.unknown_projects(self._repository, project_ids)
        if unknown:
            message = f"No such project in this organisation: {unknown[0][:200]}"
            raise ApiError(ErrorCode.INVALID_VALUE, message, param="project_ids")
        now = self._clock.now()
        wanted = dict.fromkeys(project_ids)
        granted = [await store.grant(self._repository, new_id(PREFIX, now), name, project, now) for project in wanted]
        await failpoint("permissions.after_grant")
        return granted

    async def list(self, name: str, page: Page, project: str | None) -> list[Doc]:
        """One more than the page holds, if there are more."""
        await self._models.check_own(name, may_be_gone=True)
        return await store.list_granted(self._repository, name, page.after_a(PREFIX), project)

    async def delete(self, name: str, permission_id: str) -> None:
        await self._models.check_own(name, may_be_gone=True)
        if not await store.revoke(self._repository, name, permission_id):
            raise not_found("checkpoint permission", permission_id)
