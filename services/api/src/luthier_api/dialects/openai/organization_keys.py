"""API keys of projects, of service accounts and of the organisation, after OpenAI's administration API.

Creating a project's key directly, and rotating one, are ours. Only the answers that make a value hold it; the
middleware for repetitions keeps none of them.
"""

from typing import Annotated, Literal

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from pydantic import Field, StrictBool, StrictInt, StrictStr

from luthier_api.deps import Services
from luthier_api.dialects.openai.fields import Strict
from luthier_api.dialects.openai.organization import Limit, Name, refuse_end_user
from luthier_api.domain import ASCENDING, Order, Page, Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.api_keys import ACCOUNT_SCOPES, WantedKey
from luthier_api.wire.lists import DeletedObject, ListObject, list_object
from luthier_api.wire.tenancy import (
    AdminKeyObject,
    KeyObject,
    NewServiceAccountObject,
    ServiceAccountKeyObject,
    ServiceAccountObject,
    account_key_object,
    account_object,
    admin_key_object,
    key_object,
)

DAY_S = 86_400
MAX_EXPIRY_S = 10 * 366 * DAY_S
MAX_RATE = 1_000_000
Expiry = Annotated[StrictInt, Field(ge=1, le=MAX_EXPIRY_S)]
RateLimit = Annotated[StrictInt, Field(ge=1, le=MAX_RATE)]


class CreateKey(Strict):
    """Without `user_id` the key belongs to the project itself. `strict` is as the header x-luthier-strict.

    `rate_limit` is in requests a minute; without it the installation's holds.
    """

    name: Name
    scopes: list[StrictStr]
    expires_in_seconds: Expiry | None = None
    user_id: Name | None = None
    strict: StrictBool = False
    rate_limit: RateLimit | None = None


class RotateKey(Strict):
    keep_old_for_seconds: Annotated[StrictInt, Field(ge=0, le=DAY_S)] = 0


class CreateAdminKey(Strict):
    name: Name
    expires_in_seconds: Expiry | None = None


class CreateServiceAccount(Strict):
    name: Name
    create_service_account_only: StrictBool | None = None
    expires_in_seconds: Expiry | None = None


class ModifyServiceAccount(Strict):
    name: Name | None = None
    role: Literal["member"] | None = None


class CreateServiceAccountKey(Strict):
    name: Name | None = None
    scopes: list[StrictStr] | None = None
    expires_in_seconds: Expiry | None = None


class ProjectKeysController(Controller):
    path = "/organization/projects/{project_id:str}/api_keys"
    tags = ("API keys",)
    guards = (refuse_end_user,)

    @post(
        operation="create_project_api_key",
        summary="Create a key of a project (not at OpenAI); its value is shown once",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def create(
        self,
        project_id: FromPath[str],
        data: JSONBody[CreateKey],
        services: NamedDependency[Services],
    ) -> KeyObject:
        wanted = WantedKey(data.name, data.scopes, data.expires_in_seconds, data.strict, data.rate_limit)
        issued, owner = await services.api_keys.create(project_id, wanted, data.user_id)
        return key_object(issued.row, owner, issued.value)

    @get(operation="list_project_api_keys", summary="List the keys of a project, newest first", scope=Scope.ADMIN)
    async def list(
        self,
        project_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Limit = 20,
    ) -> ListObject[KeyObject]:
        found = await services.api_keys.list_of(project_id, Page(limit, after))
        return list_object([key_object(key, owner) for key, owner in found[:limit]], has_more=len(found) > limit)

    @get("/{key_id:str}", operation="retrieve_project_api_key", summary="Look at a key", scope=Scope.ADMIN)
    async def retrieve(
        self,
        project_id: FromPath[str],
        key_id: FromPath[str],
        services: NamedDependency[Services],
    ) -> KeyObject:
        return key_object(*await services.api_keys.get(project_id, key_id))

    @post(
        "/{key_id:str}/rotate",
        operation="rotate_project_api_key",
        summary="Give a key a new value (not at OpenAI); it is shown once",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def rotate(
        self,
        project_id: FromPath[str],
        key_id: FromPath[str],
        data: JSONBody[RotateKey],
        services: NamedDependency[Services],
    ) -> KeyObject:
        issued, owner = await services.api_keys.rotate(project_id, key_id, data.keep_old_for_seconds)
        return key_object(issued.row, owner, issued.value)

    @delete(
        "/{key_id:str}", operation="delete_project_api_key", summary="Revoke a key", scope=Scope.ADMIN, status_code=200
    )
    async def delete(
        self,
        project_id: FromPath[str],
        key_id: FromPath[str],
        services: NamedDependency[Services],
    ) -> DeletedObject:
        shown_id = await services.api_keys.delete(project_id, key_id)
        return {"id": shown_id, "object": "organization.project.api_key.deleted", "deleted": True}


class AdminKeysController(Controller):
    path = "/organization/admin_api_keys"
    tags = ("API keys",)
    guards = (refuse_end_user,)

    @post(
        operation="create_admin_api_key",
        summary="Create a key of the whole organization; its value is shown once",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def create(self, data: JSONBody[CreateAdminKey], services: NamedDependency[Services]) -> AdminKeyObject:
        issued = await services.api_keys.create_admin(data.name, data.expires_in_seconds)
        return admin_key_object(issued.row, None, issued.value)

    @get(operation="list_admin_api_keys", summary="List keys of the organization", scope=Scope.ADMIN)
    async def list(
        self,
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        order: FromQuery[Order] = "asc",
        limit: Limit = 20,
    ) -> ListObject[AdminKeyObject]:
        found = await services.api_keys.list_admin(Page(limit, after, ascending=order in ASCENDING))
        return list_object([admin_key_object(key, owner) for key, owner in found[:limit]], has_more=len(found) > limit)

    @get("/{key_id:str}", operation="retrieve_admin_api_key", summary="Look at a key", scope=Scope.ADMIN)
    async def retrieve(self, key_id: FromPath[str], services: NamedDependency[Services]) -> AdminKeyObject:
        return admin_key_object(*await services.api_keys.get_admin(key_id))

    @delete(
        "/{key_id:str}", operation="delete_admin_api_key", summary="Revoke a key", scope=Scope.ADMIN, status_code=200
    )
    async def delete(self, key_id: FromPath[str], services: NamedDependency[Services]) -> DeletedObject:
        shown_id = await services.api_keys.delete_admin(key_id)
        return {"id": shown_id, "object": "organization.admin_api_key.deleted", "deleted": True}


class ServiceAccountsController(Controller):
    path = "/organization/projects/{project_id:str}/service_accounts"
    tags = ("API keys",)
    guards = (refuse_end_user,)

    @post(
        operation="create_service_account",
        summary="Create a service account with its first key, whose value is shown once",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def create(
        self,
        project_id: FromPath[str],
        data: JSONBody[CreateServiceAccount],
        services: NamedDependency[Services],
    ) -> NewServiceAccountObject:
        alone = bool(data.create_service_account_only)
        if alone and data.expires_in_seconds is not None:
            message = "Without a key there is nothing that expires."
            raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param="expires_in_seconds")
        account = await services.tenancy.create_account(project_id, name=data.name, role="none" if alone else "member")
        if alone:
            return {**account_object(account), "api_key": None}
        wanted = WantedKey(data.name, ACCOUNT_SCOPES, data.expires_in_seconds)
        issued = await services.api_keys.create_for_account(account, wanted)
        return {**account_object(account), "api_key": account_key_object(issued.row, issued.value)}

    @get(operation="list_service_accounts", summary="List the service accounts of a project", scope=Scope.ADMIN)
    async def list(
        self,
        project_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Limit = 20,
    ) -> ListObject[ServiceAccountObject]:
        found = await services.tenancy.list_accounts(project_id, Page(limit, after))
        return list_object([account_object(each) for each in found[:limit]], has_more=len(found) > limit)

    @get("/{account_id:str}", operation="retrieve_service_account", summary="Look at one", scope=Scope.ADMIN)
    async def retrieve(
        self,
        project_id: FromPath[str],
        account_id: FromPath[str],
        services: NamedDependency[Services],
    ) -> ServiceAccountObject:
        return account_object(await services.tenancy.account(project_id, account_id))

    @post(
        "/{account_id:str}",
        operation="modify_service_account",
        summary="Rename a service account",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def modify(
        self,
        project_id: FromPath[str],
        account_id: FromPath[str],
        data: JSONBody[ModifyServiceAccount],
        services: NamedDependency[Services],
    ) -> ServiceAccountObject:
        return account_object(
            await services.tenancy.change_account(project_id, account_id, name=data.name, role=data.role)
        )

    @delete(
        "/{account_id:str}",
        operation="delete_service_account",
        summary="Remove a service account, and revoke its keys",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def delete(
        self,
        project_id: FromPath[str],
        account_id: FromPath[str],
        services: NamedDependency[Services],
    ) -> DeletedObject:
        await services.tenancy.delete_account(project_id, account_id)
        return {"id": account_id, "object": "organization.project.service_account.deleted", "deleted": True}

    @post(
        "/{account_id:str}/api_keys",
        operation="create_service_account_api_key",
        summary="Create a further key of a service account; its value is shown once",
        scope=Scope.ADMIN,
        status_code=200,
    )
    async def create_key(
        self,
        project_id: FromPath[str],
        account_id: FromPath[str],
        data: JSONBody[CreateServiceAccountKey],
        services: NamedDependency[Services],
    ) -> ServiceAccountKeyObject:
        await services.tenancy.active_project(project_id)
        account = await services.tenancy.account(project_id, account_id)
        scopes = ACCOUNT_SCOPES if data.scopes is None else data.scopes
        wanted = WantedKey(data.name or account["name"], scopes, data.expires_in_seconds)
        issued = await services.api_keys.create_for_account(account, wanted)
        return account_key_object(issued.row, issued.value)
