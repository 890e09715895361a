"""Keys of a project and of an organisation: who may be given what, and their end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier_api.domain import Page, Principal, Scope
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode, not_found
from luthier_api.idempotency import Ids
from luthier_api.keys import Grant, Issued, KeyRing, new_value
from luthier_api.services.tenancy import TenancyService
from luthier_api.store.tenancy import ADMIN_KEYS, Directory, keys_of
from luthier_api.wire.tenancy import KEY_PREFIX, KeyOwner, key_owner
from luthier_common.kit.mongo import Doc

ACCOUNT_SCOPES = tuple(str(scope) for scope in Scope if scope not in (Scope.ADMIN, Scope.ON_BEHALF_OF, Scope.WEBHOOKS))
"""What the first key of a service account may do: all of the daily work, nothing else."""


@dataclass(frozen=True)
class WantedKey:
    """What a request asks a key to be."""

    name: str
    scopes: Sequence[str]
    expires_in_s: int | None = None
    is_strict: bool = False
    rate_limit: int | None = None


class KeyService:
    """Keys of one principal's organisation, for one request."""

    def __init__(self, directory: Directory, keys: KeyRing, tenancy: TenancyService, ids: Ids) -> None:
        self._ids = ids
        self._directory = directory
        self._keys = keys
        self._tenancy = tenancy
        self._org = directory.org

    async def create(self, project_id: str, wanted: WantedKey, user_id: str | None = None) -> tuple[Issued, KeyOwner]:
        await self._tenancy.active_project(project_id)
        scopes = granted_scopes(self._directory.principal, wanted.scopes)
        user = None if user_id is None else await self._user_for(project_id, user_id, scopes)
        issued = await self._issue(project_id, wanted, scopes, user=user_id)
        return issued, key_owner(user, None)

    async def create_for_account(self, account: Doc, wanted: WantedKey) -> Issued:
        """A key that ends with the service account. It never administrates."""
        scopes = granted_scopes(self._directory.principal, wanted.scopes)
        if Scope.ADMIN in scopes:
            message = "The key of a service account cannot have the scope admin."
            raise ApiError(ErrorCode.INVALID_VALUE, message, param="scopes")
        return await self._issue(account["project"], wanted, scopes, account=account["_id"])

    async def create_admin(self, name: str, expires_in_s: int | None) -> Issued:
        """A key for the whole organisation; its data is that of the project of the key that asks."""
        wanted = WantedKey(name, (str(Scope.ADMIN),), expires_in_s)
        scopes = granted_scopes(self._directory.principal, wanted.scopes)
        return await self._issue(self._directory.principal.project, wanted, scopes)

    async def list_of(self, project_id: str, page: Page) -> list[tuple[Doc, KeyOwner]]:
        await self._tenancy.project(project_id)
        return await self._with_owners(await self._directory.list_keys(_cursor(page), keys_of(project_id)))

    async def list_admin(self, page: Page) -> list[tuple[Doc, Doc | None]]:
        rows = await self._directory.list_keys(_cursor(page), ADMIN_KEYS)
        users = await self._users_of(rows)
        return [(row, users.get(row.get("user") or "")) for row in rows]

    async def get(self, project_id: str, key_id: str) -> tuple[Doc, KeyOwner]:
        await self._tenancy.project(project_id)
        return (await self._with_owners([await self._row(key_id, keys_of(project_id))]))[0]

    async def get_admin(self, key_id: str) -> tuple[Doc, Doc | None]:
        row = await self._row(key_id, ADMIN_KEYS)
        return row, (await self._users_of([row])).get(row.get("user") or "")

    async def rotate(self, project_id: str, key_id: str, keep_old_s: int) -> tuple[Issued, KeyOwner]:
        """A new value for the same key; the one before it is accepted for so long more."""
        await self._tenancy.active_project(project_id)
        issued = await self._keys.rotate({"org": self._org, **keys_of(project_id)}, _bare(key_id), keep_old_s)
        if issued is None:
            raise not_found("API key", key_id)
        [(_, owner)] = await self._with_owners([issued.row])
        return issued, owner

    async def delete(self, project_id: str, key_id: str) -> str:
        """Revoked for good; the id as it is shown."""
        await self._tenancy.project(project_id)
        return await self._revoke(key_id, keys_of(project_id))

    async def delete_admin(self, key_id: str) -> str:
        return await self._revoke(key_id, ADMIN_KEYS)

    async def _issue(
        self,
        project_id: str,
        wanted: WantedKey,
        scopes: frozenset[str],
        *,
        user: str | None = None,
        account: str | None = None,
    ) -> Issued:
        """Made again for the same Idempotency-Key it gets another value: nobody has seen the one before."""
        return await self._keys.issue(
            Grant(
                name=wanted.name,
                scopes=scopes,
                org=self._org,
                project=project_id,
                expires_in_s=wanted.expires_in_s,
                user=user,
                service_account=account,
                is_strict=wanted.is_strict,
                rate_limit=wanted.rate_limit,
                created_by=self._directory.principal.key_id,
            ),
            new_value(self._ids.new("")),
        )

    async def _user_for(self, project_id: str, user_id: str, scopes: frozenset[str]) -> Doc:
        user = await self._directory.find_user(user_id)
        if user is None:
            raise ApiError(ErrorCode.INVALID_VALUE, "The organization has no such user.", param="user_id")
        if user["role"] != "owner":
            if Scope.ADMIN in scopes:
                message = "Only owners of the organization may have keys with the scope admin."
                raise ApiError(ErrorCode.INVALID_VALUE, message, param="scopes")
            if await self._directory.find_member(project_id, user_id) is None:
                raise ApiError(ErrorCode.INVALID_VALUE, "The user is not in this project.", param="user_id")
        return user

    async def _row(self, key_id: str, wanted: Mapping[str, Any]) -> Doc:
        row = await self._directory.find_key(_bare(key_id), wanted)
        if row is None:
            raise not_found("API key", key_id)
        return row

    async def _revoke(self, key_id: str, wanted: Mapping[str, Any]) -> str:
        if not await self._keys.revoke({"_id": _bare(key_id), "org": self._org, **wanted}):
            raise not_found("API key", key_id)
        return KEY_PREFIX + _bare(key_id)

    async def _with_owners(self, rows: list[Doc]) -> list[tuple[Doc, KeyOwner]]:
        users = await self._users_of(rows)
        named = [row["service_account"] for row in rows if row.get("service_account")]
        accounts = await self._directory.find_accounts(named) if named else {}
        return [
            (row, key_owner(users.get(row.get("user") or ""), accounts.get(row.get("service_account") or "")))
            for row in rows
        ]

    async def _users_of(self, rows: list[Doc]) -> dict[str, Doc]:
        named = [row["user"] for row in rows if row.get("user")]
        return await self._directory.find_users(named) if named else {}


def granted_scopes(principal: Principal, names: Iterable[str]) -> frozenset[str]:
    """The scopes by name; ApiError for one that does not exist, and for one that the giver lacks."""
    wanted = frozenset(names)
    known = frozenset(str(scope) for scope in Scope)
    if not wanted or wanted - known:
        message = f"scopes must be some of {', '.join(sorted(known))}."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="scopes")
    if lacking := sorted(scope for scope in wanted if not principal.may(scope)):
        message = f"This API key lacks the scope {lacking[0]} and cannot give it."
        raise ApiError(ErrorCode.MISSING_SCOPE, message, param="scopes", headers=NO_RETRY)
    return wanted


def _bare(key_id: str) -> str:
    """An id as it is shown, or as it stands inside of a key, without its prefix."""
    return key_id.removeprefix(KEY_PREFIX)


def _cursor(page: Page) -> Page:
    after = page.after_a(KEY_PREFIX).after
    return Page(page.limit, after and _bare(after), page.ascending)
