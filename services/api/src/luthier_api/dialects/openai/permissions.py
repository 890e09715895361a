"""`/v1/fine_tuning/checkpoints/{name}/permissions`. The name is one opaque key that may hold `/` and `:`, encoded or
not, so what follows it is found from the end of the path."""

from typing import Annotated, Literal

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import Field, StrictStr

from luthier_api.deps import Services
from luthier_api.dialects.openai.fields import Strict
from luthier_api.dialects.openai.organization import refuse_end_user
from luthier_api.domain import Page, Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.permissions import MAX_PROJECTS
from luthier_api.wire.lists import DeletedObject, ListObject, list_object
from luthier_api.wire.permissions import PermissionObject, permission_object

TAIL = "/permissions"
Order = Literal["ascending", "descending", "asc", "desc"]


class CreatePermissions(Strict):
    project_ids: Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_PROJECTS)]


class PermissionsController(Controller):
    path = "/fine_tuning/checkpoints"
    tags = ("Fine-tuning",)
    guards = (refuse_end_user,)

    @post(
        "/{path_tail:path}",
        operation="create_checkpoint_permissions",
        summary="Let other projects of the organisation call a checkpoint or tuned model",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def create(
        self,
        path_tail: FromPath[str],
        data: JSONBody[CreatePermissions],
        services: NamedDependency[Services],
    ) -> ListObject[PermissionObject]:
        """The path is `{name}/permissions`. A project that has one keeps it; all are of the same organisation."""
        made = await services.permissions.create(name_in(path_tail), data.project_ids)
        return list_object([permission_object(one) for one in made], has_more=False)

    @get(
        "/{path_tail:path}",
        operation="list_checkpoint_permissions",
        summary="List who may call a checkpoint or tuned model",
        scope=Scope.ADMIN,
    )
    async def list(
        self,
        path_tail: FromPath[str],
        services: NamedDependency[Services],
        project_id: FromQuery[str | None] = None,
        after: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 10,
        order: FromQuery[Order] = "descending",
    ) -> ListObject[PermissionObject]:
        """The path is `{name}/permissions`. Newest first, unless `order` says otherwise."""
        page = Page(limit, after, ascending=order.startswith("asc"))
        found = await services.permissions.list(name_in(path_tail), page, project_id)
        return list_object([permission_object(one) for one in found[:limit]], has_more=len(found) > limit)

    @delete(
        "/{path_tail:path}",
        operation="delete_checkpoint_permission",
        summary="Take a permission back",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def delete(self, path_tail: FromPath[str], services: NamedDependency[Services]) -> DeletedObject:
        """The path is `{name}/permissions/{permission_id}`. The next call by that project is refused."""
        head, _, permission_id = path_tail.rpartition("/")
        await services.permissions.delete(name_in(head), permission_id)
        return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}


def name_in(path_tail: str) -> str:
    """The model's name in front of `/permissions`."""
    name = path_tail.removeprefix("/").removesuffix(TAIL)
    if not name or not path_tail.endswith(TAIL):
        raise ApiError(ErrorCode.UNKNOWN_URL, "There is no such address.")
    return name
