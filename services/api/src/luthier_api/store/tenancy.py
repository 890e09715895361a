"""Organisations and what is in them: projects, users, memberships, service accounts, and keys as rows to look at.

A `Directory` shows one principal its own organisation; every query carries that organisation.
"""

from collections.abc import Mapping
from typing import Any

from luthier_api.domain import Page, Principal, Scope
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import AFTER, Database, Doc

PROJECTS = "projects"
USERS = "users"
MEMBERS = "project_users"
ACCOUNTS = "service_accounts"
KEYS = "api_keys"
KEY_FIELDS = {"digest": 0, "previous": 0}
"""A hash is nobody's business, although nothing could be done with it."""


class Directory:
    """One principal's organisation, for one request."""

    def __init__(self, db: Database, principal: Principal) -> None:
        self._db = db
        self.principal = principal
        self.org = principal.org

    # Projects

    async def find_project(self, project_id: str) -> Doc | None:
        return await self._find(PROJECTS, {"_id": project_id})

    async def list_projects(self, page: Page, *, with_archived: bool) -> list[Doc]:
        return await self._page(PROJECTS, {} if with_archived else {"archived_at": None}, page)

    async def add_project(self, project_id: str, name: str) -> Doc:
        return await insert(self._db, PROJECTS, project_id, {"org": self.org, "name": name, "archived_at": None})

    async def rename_project(self, project_id: str, name: str) -> Doc | None:
        return await self._change(PROJECTS, {"_id": project_id, "archived_at": None}, {"name": {"$literal": name}})

    async def archive_project(self, project_id: str) -> Doc | None:
        """The first time counts."""
        return await self._change(
            PROJECTS, {"_id": project_id}, {"archived_at": {"$ifNull": ["$archived_at", "$$NOW"]}}
        )

    # Users of the organisation

    async def find_user(self, user_id: str) -> Doc | None:
        return await self._find(USERS, {"_id": user_id})

    async def find_user_by_email(self, email: str) -> Doc | None:
        return await self._find(USERS, {"email": email})

    async def list_users(self, page: Page) -> list[Doc]:
        return await self._page(USERS, {}, page)

    async def add_user(self, user_id: str, *, email: str, name: str, role: str) -> Doc:
        """Raises DuplicateKeyError where the organisation has a user with this address."""
        return await insert(self._db, USERS, user_id, {"org": self.org, "email": email, "name": name, "role": role})

    async def change_user_role(self, user_id: str, role: str) -> Doc | None:
        return await self._change(USERS, {"_id": user_id}, {"role": {"$literal": role}})

    async def remove_user(self, user_id: str) -> bool:
        await self._db[MEMBERS].delete_many({"org": self.org, "user": user_id})
        await failpoint("tenancy.mid_remove")
        return await self._remove(USERS, {"_id": user_id})

    # Users of a project

    async def find_member(self, project_id: str, user_id: str) -> Doc | None:
        return await self._find(MEMBERS, {"project": project_id, "user": user_id})

    async def list_members(self, project_id: str, page: Page) -> list[Doc]:
        after = Page(page.limit, page.after and _member_id(project_id, page.after), page.ascending)
        return await self._page(MEMBERS, {"project": project_id}, after)

    async def find_users(self, user_ids: list[str]) -> dict[str, Doc]:
        found = self._db[USERS].find({"_id": {"$in": user_ids}, "org": self.org})
        return {user["_id"]: user async for user in found}

    async def add_member(self, project_id: str, user_id: str, role: str) -> Doc:
        """A member that is there already keeps the date and gets the role."""
        fields = {"org": self.org, "project": project_id, "user": user_id, "role": role}
        return await insert(self._db, MEMBERS, _member_id(project_id, user_id), fields)

    async def remove_member(self, project_id: str, user_id: str) -> bool:
        return await self._remove(MEMBERS, {"project": project_id, "user": user_id})

    # Service accounts of a project

    async def find_account(self, project_id: str, account_id: str) -> Doc | None:
        return await self._find(ACCOUNTS, {"_id": account_id, "project": project_id})

    async def list_accounts(self, project_id: str, page: Page) -> list[Doc]:
        return await self._page(ACCOUNTS, {"project": project_id}, page)

    async def find_accounts(self, account_ids: list[str]) -> dict[str, Doc]:
        found = self._db[ACCOUNTS].find({"_id": {"$in": account_ids}, "org": self.org})
        return {account["_id"]: account async for account in found}

    async def add_account(self, project_id: str, account_id: str, *, name: str, role: str) -> Doc:
        fields = {"org": self.org, "project": project_id, "name": name, "role": role}
        return await insert(self._db, ACCOUNTS, account_id, fields)

    async def change_account(self, project_id: str, account_id: str, fields: Mapping[str, str]) -> Doc | None:
        change = {name: {"$literal": value} for name, value in fields.items()}
        return await self._change(ACCOUNTS, {"_id": account_id, "project": project_id}, change)

    async def remove_account(self, project_id: str, account_id: str) -> bool:
        return await self._remove(ACCOUNTS, {"_id": account_id, "project": project_id})

    # Keys that have not been revoked

    async def find_key(self, key_id: str, wanted: Mapping[str, Any]) -> Doc | None:
        query = {"_id": key_id, **wanted, "revoked": False, "org": self.org}
        return await self._db[KEYS].find_one(query, KEY_FIELDS)

    async def list_keys(self, page: Page, wanted: Mapping[str, Any]) -> list[Doc]:
        return await self._page(KEYS, {**wanted, "revoked": False}, page, KEY_FIELDS)

    async def _find(self, collection: str, query: Doc) -> Doc | None:
        return await self._db[collection].find_one({**query, "org": self.org})

    async def _change(self, collection: str, query: Doc, change: Doc) -> Doc | None:
        return await self._db[collection].find_one_and_update(
            {**query, "org": self.org}, [{"$set": change}], return_document=AFTER
        )

    async def _remove(self, collection: str, query: Doc) -> bool:
        return bool((await self._db[collection].delete_one({**query, "org": self.org})).deleted_count)

    async def _page(self, collection: str, query: Doc, page: Page, fields: Doc | None = None) -> list[Doc]:
        """One more than the page holds, if there are more. Ids sort by time."""
        query = {**query, "org": self.org}
        if page.after is not None:
            query["_id"] = {"$gt" if page.ascending else "$lt": page.after}
        found = self._db[collection].find(query, fields).sort("_id", 1 if page.ascending else -1)
        return await found.limit(page.limit + 1).to_list(page.limit + 1)


ADMIN_KEYS: Doc = {"scopes": str(Scope.ADMIN)}


def keys_of(project_id: str) -> Doc:
    return {"project": project_id}


async def insert(db: Database, collection: str, thing_id: str, fields: Mapping[str, Any]) -> Doc:
    """Write a document as made now, in database time; one that is there keeps its date."""
    made = await db[collection].find_one_and_update(
        {"_id": thing_id},
        [
            {
                "$set": {name: {"$literal": value} for name, value in fields.items()}
                | {"created_at": {"$ifNull": ["$created_at", "$$NOW"]}}
            }
        ],
        upsert=True,
        return_document=AFTER,
    )
    await failpoint("tenancy.after_insert")
    assert made is not None
    return made


def _member_id(project_id: str, user_id: str) -> str:
    return f"{project_id}/{user_id}"
