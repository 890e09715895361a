"""`/v1/organization/projects` and `/v1/organization/users`, after OpenAI's administration API.

Administration needs the scope `admin`, sees the key's own organisation only, and is never done for an end user.
"""

from typing import Annotated, Any, Literal

from litestar import Controller, delete, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import StringConstraints

from luthier_api.deps import Services
from luthier_api.dialects.openai.fields import Strict
from luthier_api.domain import Page, Principal, Scope
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode
from luthier_api.wire.lists import DeletedObject, ListObject, list_object
from luthier_api.wire.tenancy import (
    ProjectObject,
    ProjectUserObject,
    UserObject,
    project_object,
    project_user_object,
    user_object,
)

MAX_PAGE = 100
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Email = Annotated[
    str,
    StringConstraints(
        strict=True, max_length=320, to_lower=True, pattern=r"^[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+$"
    ),
]


async def refuse_end_user(connection: ASGIConnection[Any, Principal, Any, Any], _handler: BaseRouteHandler) -> None:
    """A service that passes its users' requests on must not pass administration on."""
    if connection.user.end_user is not None:
        code = ErrorCode.END_USER_REFUSED
        raise ApiError(code, code.sentence, param="X-On-Behalf-Of", headers=NO_RETRY)


class CreateProject(Strict):
    name: Name


class ModifyProject(Strict):
    name: Name | None = None


class CreateUser(Strict):
    email: Email
    name: Name | None = None
    role: Literal["owner", "reader"] = "reader"


class ModifyUser(Strict):
    role: Literal["owner", "reader"] | None = None


class AddProjectUser(Strict):
    role: Literal["owner", "member"]
    user_id: Name | None = None
    email: Name | None = None


class ModifyProjectUser(Strict):
    role: Literal["owner", "member"] | None = None


class ProjectsController(Controller):
    path = "/organization/projects"
    tags = ("Organization",)
    guards = (refuse_end_user,)

    @post(operation="create_project", summary="Create a project", scope=Scope.ADMIN, status_code=200)
    async def create(self, data: JSONBody[CreateProject], services: NamedDependency[Services]) -> ProjectObject:
        return project_object(await services.tenancy.create_project(data.name))

    @get(operation="list_projects", summary="List projects, newest first", scope=Scope.ADMIN)
    async def list(
        self,
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        include_archived: FromQuery[bool] = False,
        limit: Limit = 20,
    ) -> ListObject[ProjectObject]:
        found = await services.tenancy.list_projects(Page(limit, after), with_archived=include_archived)
        return list_object([project_object(each) for each in found[:limit]], has_more=len(found) > limit)

    @get("/{project_id:str}", operation="retrieve_project", summary="Look at a project", scope=Scope.ADMIN)
    async def retrieve(self, project_id: FromPath[str], services: NamedDependency[Services]) -> ProjectObject:
        return project_object(await services.tenancy.project(project_id))

    @post(
        "/{project_id:str}",
        operation="modify_project",
        summary="Rename a project",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def modify(
        self,
        project_id: FromPath[str],
        data: JSONBody[ModifyProject],
        services: NamedDependency[Services],
    ) -> ProjectObject:
        return project_object(await services.tenancy.rename_project(project_id, data.name))

    @post(
        "/{project_id:str}/archive",
        operation="archive_project",
        summary="Archive a project; its keys stop working",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def archive(self, project_id: FromPath[str], services: NamedDependency[Services]) -> ProjectObject:
        return project_object(await services.tenancy.archive_project(project_id))


class UsersController(Controller):
    path = "/organization/users"
    tags = ("Organization",)
    guards = (refuse_end_user,)

    @post(operation="create_user", summary="Add a user (not at OpenAI)", scope=Scope.ADMIN, status_code=200)
    async def create(self, data: JSONBody[CreateUser], services: NamedDependency[Services]) -> UserObject:
        name = data.email if data.name is None else data.name
        return user_object(await services.tenancy.create_user(email=data.email, name=name, role=data.role))

    @get(operation="list_users", summary="List users, newest first", scope=Scope.ADMIN)
    async def list(
        self,
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Limit = 20,
    ) -> ListObject[UserObject]:
        found = await services.tenancy.list_users(Page(limit, after))
        return list_object([user_object(each) for each in found[:limit]], has_more=len(found) > limit)

    @get("/{user_id:str}", operation="retrieve_user", summary="Look at a user", scope=Scope.ADMIN)
    async def retrieve(self, user_id: FromPath[str], services: NamedDependency[Services]) -> UserObject:
        return user_object(await services.tenancy.user(user_id))

    @post("/{user_id:str}", operation="modify_user", summary="Change a user's role", scope=Scope.ADMIN, status_code=200)
    async def modify(
        self,
        user_id: FromPath[str],
        data: JSONBody[ModifyUser],
        services: NamedDependency[Services],
    ) -> UserObject:
        return user_object(await services.tenancy.change_user_role(user_id, data.role))

    @delete(
        "/{user_id:str}",
        operation="delete_user",
        summary="Remove a user, and revoke the user's keys",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def delete(self, user_id: FromPath[str], services: NamedDependency[Services]) -> DeletedObject:
        await services.tenancy.delete_user(user_id)
        return {"id": user_id, "object": "organization.user.deleted", "deleted": True}


class ProjectUsersController(Controller):
    path = "/organization/projects/{project_id:str}/users"
    tags = ("Organization",)
    guards = (refuse_end_user,)

    @post(operation="add_project_user", summary="Let a user into a project", scope=Scope.ADMIN, status_code=200)
    async def create(
        self,
        project_id: FromPath[str],
        data: JSONBody[AddProjectUser],
        services: NamedDependency[Services],
    ) -> ProjectUserObject:
        member = await services.tenancy.add_member(project_id, user_id=data.user_id, email=data.email, role=data.role)
        return project_user_object(member.membership, member.user)

    @get(operation="list_project_users", summary="List the users of a project", scope=Scope.ADMIN)
    async def list(
        self,
        project_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Limit = 20,
    ) -> ListObject[ProjectUserObject]:
        found = await services.tenancy.list_members(project_id, Page(limit, after))
        shown = [project_user_object(each.membership, each.user) for each in found[:limit]]
        return list_object(shown, has_more=len(found) > limit)

    @get("/{user_id:str}", operation="retrieve_project_user", summary="Look at a user of a project", scope=Scope.ADMIN)
    async def retrieve(
        self,
        project_id: FromPath[str],
        user_id: FromPath[str],
        services: NamedDependency[Services],
    ) -> ProjectUserObject:
        member = await services.tenancy.member(project_id, user_id)
        return project_user_object(member.membership, member.user)

    @post(
        "/{user_id:str}",
        operation="modify_project_user",
        summary="Change a user's role in a project",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def modify(
        self,
        project_id: FromPath[str],
        user_id: FromPath[str],
        data: JSONBody[ModifyProjectUser],
        services: NamedDependency[Services],
    ) -> ProjectUserObject:
        member = await services.tenancy.change_member_role(project_id, user_id, data.role)
        return project_user_object(member.membership, member.user)

    @delete(
        "/{user_id:str}",
        operation="delete_project_user",
        summary="Take a user out of a project, and revoke the user's keys for it",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def delete(
        self,
        project_id: FromPath[str],
        user_id: FromPath[str],
        services: NamedDependency[Services],
    ) -> DeletedObject:
        await services.tenancy.remove_member(project_id, user_id)
        return {"id": user_id, "object": "organization.project.user.deleted", "deleted": True}
