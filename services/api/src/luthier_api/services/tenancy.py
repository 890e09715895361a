"""Projects, users and service accounts of one organisation. What ends a person's access ends their keys first."""

from dataclasses import dataclass, replace

from luthier_api.domain import Page
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode, not_found
from luthier_api.idempotency import Ids
from luthier_api.keys import KeyRing
from luthier_api.store.tenancy import Directory
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc, DuplicateKeyError

PROJECT_PREFIX = "proj-"
USER_PREFIX = "user-"
ACCOUNT_PREFIX = "svcacct-"


@dataclass(frozen=True)
class Member:
    """A user in a project."""

    membership: Doc
    user: Doc


class TenancyService:
    """The organisation of one principal, for one request."""

    def __init__(self, directory: Directory, keys: KeyRing, ids: Ids) -> None:
        self._directory = directory
        self._keys = keys
        self._ids = ids
        self._org = directory.org

    # Projects

    async def create_project(self, name: str) -> Doc:
        return await self._directory.add_project(self._ids.new(PROJECT_PREFIX), name)

    async def list_projects(self, page: Page, *, with_archived: bool) -> list[Doc]:
        return await self._directory.list_projects(page.after_a(PROJECT_PREFIX), with_archived=with_archived)

    async def project(self, project_id: str) -> Doc:
        project = await self._directory.find_project(project_id)
        if project is None:
            raise not_found("project", project_id)
        return project

    async def active_project(self, project_id: str) -> Doc:
        """A project that may change; ApiError for an archived one."""
        project = await self.project(project_id)
        if project.get("archived_at"):
            raise ApiError(ErrorCode.PROJECT_ARCHIVED, ErrorCode.PROJECT_ARCHIVED.sentence, headers=NO_RETRY)
        return project

    async def rename_project(self, project_id: str, name: str | None) -> Doc:
        project = await self.active_project(project_id)
        return project if name is None else await self._directory.rename_project(project_id, name) or project

    async def archive_project(self, project_id: str) -> Doc:
        """Its keys are refused from now on. A second time changes nothing."""
        await self.project(project_id)
        if project_id == self._directory.principal.project:
            raise ApiError(ErrorCode.OWN_PROJECT, ErrorCode.OWN_PROJECT.sentence, headers=NO_RETRY)
        archived = await self._directory.archive_project(project_id)
        await failpoint("tenancy.after_archive")
        self._keys.forget()
        if archived is None:
            raise not_found("project", project_id)
        return archived

    # Users of the organisation

    async def create_user(self, *, email: str, name: str, role: str) -> Doc:
        user_id = self._ids.new(USER_PREFIX)
        try:
            return await self._directory.add_user(user_id, email=email, name=name, role=role)
        except DuplicateKeyError as error:
            message = "The organization has a user with this email address."
            raise ApiError(ErrorCode.ALREADY_EXISTS, message, param="email", headers=NO_RETRY) from error

    async def list_users(self, page: Page) -> list[Doc]:
        return await self._directory.list_users(page.after_a(USER_PREFIX))

    async def user(self, user_id: str) -> Doc:
        user = await self._directory.find_user(user_id)
        if user is None:
            raise not_found("user", user_id)
        return user

    async def change_user_role(self, user_id: str, role: str | None) -> Doc:
        user = await self.user(user_id)
        if role is None:
            return user
        changed = await self._directory.change_user_role(user_id, role)
        self._keys.forget()
        return changed or user

    async def delete_user(self, user_id: str) -> None:
        await self.user(user_id)
        await self._keys.revoke({"org": self._org, "user": user_id})
        if not await self._directory.remove_user(user_id):
            raise not_found("user", user_id)
        self._keys.forget()

    # Users of a project

    async def add_member(self, project_id: str, *, user_id: str | None, email: str | None, role: str) -> Member:
        await self.active_project(project_id)
        if (user_id is None) == (email is None):
            code = ErrorCode.MISSING_PARAMETER if user_id is None else ErrorCode.CONFLICTING_PARAMETERS
            raise ApiError(code, "Name the user by user_id or by email.", param="user_id")
        if user_id is not None:
            user = await self._directory.find_user(user_id)
        else:
            user = await self._directory.find_user_by_email(str(email).lower())
        if user is None:
            message, param = "The organization has no such user.", "email" if user_id is None else "user_id"
            raise ApiError(ErrorCode.INVALID_VALUE, message, param=param)
        return Member(await self._directory.add_member(project_id, user["_id"], role), user)

    async def list_members(self, project_id: str, page: Page) -> list[Member]:
        """One more than the page holds, if there are more."""
        await self.project(project_id)
        page = page.after_a(USER_PREFIX)
        found: list[Member] = []
        while True:
            rows = await self._directory.list_members(project_id, page)
            users = await self._directory.find_users([row["user"] for row in rows])
            found += [Member(row, users[row["user"]]) for row in rows if row["user"] in users]
            if len(rows) <= page.limit or len(found) > page.limit:
                return found[: page.limit + 1]
            page = replace(page, after=rows[-1]["user"])

    async def member(self, project_id: str, user_id: str) -> Member:
        await self.project(project_id)
        row = await self._directory.find_member(project_id, user_id)
        user = await self._directory.find_user(user_id)
        if row is None or user is None:
            raise not_found("project user", user_id)
        return Member(row, user)

    async def change_member_role(self, project_id: str, user_id: str, role: str | None) -> Member:
        await self.active_project(project_id)
        member = await self.member(project_id, user_id)
        if role is None:
            return member
        return Member(await self._directory.add_member(project_id, user_id, role), member.user)

    async def remove_member(self, project_id: str, user_id: str) -> None:
        await self.active_project(project_id)
        await self.member(project_id, user_id)
        await self._keys.revoke({"org": self._org, "project": project_id, "user": user_id})
        if not await self._directory.remove_member(project_id, user_id):
            raise not_found("project user", user_id)

    # Service accounts of a project

    async def create_account(self, project_id: str, *, name: str, role: str) -> Doc:
        await self.active_project(project_id)
        return await self._directory.add_account(project_id, self._ids.new(ACCOUNT_PREFIX), name=name, role=role)

    async def list_accounts(self, project_id: str, page: Page) -> list[Doc]:
        await self.project(project_id)
        return await self._directory.list_accounts(project_id, page.after_a(ACCOUNT_PREFIX))

    async def account(self, project_id: str, account_id: str) -> Doc:
        await self.project(project_id)
        account = await self._directory.find_account(project_id, account_id)
        if account is None:
            raise not_found("service account", account_id)
        return account

    async def change_account(self, project_id: str, account_id: str, *, name: str | None, role: str | None) -> Doc:
        await self.active_project(project_id)
        account = await self.account(project_id, account_id)
        fields = {key: value for key, value in (("name", name), ("role", role)) if value is not None}
        return (await self._directory.change_account(project_id, account_id, fields) if fields else None) or account

    async def delete_account(self, project_id: str, account_id: str) -> None:
        await self.active_project(project_id)
        await self.account(project_id, account_id)
        await self._keys.revoke({"org": self._org, "service_account": account_id})
        if not await self._directory.remove_account(project_id, account_id):
            raise not_found("service account", account_id)
        self._keys.forget()
