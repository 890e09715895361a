"""Organisations as clients see them, after OpenAI's administration API. `scopes`, `strict` and
`rate_limit` of keys are ours."""

from typing import Literal, NotRequired, TypedDict

from luthier_api.wire.lists import unix, unix_or_none
from luthier_common.kit.mongo import Doc

KEY_PREFIX = "key_"


class ProjectObject(TypedDict):
    id: str
    object: Literal["organization.project"]
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]


class UserObject(TypedDict):
    id: str
    object: Literal["organization.user"]
    name: str
    email: str
    role: Literal["owner", "reader"]
    added_at: int


class ProjectUserObject(TypedDict):
    id: str
    object: Literal["organization.project.user"]
    name: str
    email: str
    role: Literal["owner", "member"]
    added_at: int


class ServiceAccountObject(TypedDict):
    id: str
    object: Literal["organization.project.service_account"]
    name: str
    role: Literal["member", "none"]
    created_at: int


class ServiceAccountKeyObject(TypedDict):
    """The key of a service account, as it can be seen once."""

    id: str
    object: Literal["organization.project.service_account.api_key"]
    name: str
    created_at: int
    expires_at: int | None
    scopes: list[str]
    value: str


class NewServiceAccountObject(ServiceAccountObject):
    api_key: ServiceAccountKeyObject | None


class OwnerUser(TypedDict):
    id: str
    name: str
    email: str
    role: str
    created_at: int


class OwnerAccount(TypedDict):
    id: str
    name: str
    role: str
    created_at: int


class KeyOwner(TypedDict):
    """`type` is null for a key that belongs to the project itself."""

    type: Literal["user", "service_account"] | None
    user: OwnerUser | None
    service_account: OwnerAccount | None


class KeyObject(TypedDict):
    id: str
    object: Literal["organization.project.api_key"]
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: KeyOwner
    owner_project_access: Literal["active"]
    scopes: list[str]
    strict: bool
    rate_limit: int | None
    value: NotRequired[str]


class AdminKeyOwner(TypedDict):
    type: Literal["user"] | None
    id: str | None
    name: str | None
    role: str | None


class AdminKeyObject(TypedDict):
    id: str
    object: Literal["organization.admin_api_key"]
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: AdminKeyOwner
    project_id: str
    scopes: list[str]
    value: NotRequired[str]


def project_object(project: Doc) -> ProjectObject:
    return {
        "id": project["_id"],
        "object": "organization.project",
        "name": project["name"],
        "created_at": unix(project["created_at"]),
        "archived_at": unix_or_none(project.get("archived_at")),
        "status": "archived" if project.get("archived_at") else "active",
    }


def user_object(user: Doc) -> UserObject:
    return {
        "id": user["_id"],
        "object": "organization.user",
        "name": user["name"],
        "email": user["email"],
        "role": user["role"],
        "added_at": unix(user["created_at"]),
    }


def project_user_object(member: Doc, user: Doc) -> ProjectUserObject:
    return {
        "id": user["_id"],
        "object": "organization.project.user",
        "name": user["name"],
        "email": user["email"],
        "role": member["role"],
        "added_at": unix(member["created_at"]),
    }


def account_object(account: Doc) -> ServiceAccountObject:
    return {
        "id": account["_id"],
        "object": "organization.project.service_account",
        "name": account["name"],
        "role": account["role"],
        "created_at": unix(account["created_at"]),
    }


def account_key_object(key: Doc, value: str) -> ServiceAccountKeyObject:
    return {
        "id": KEY_PREFIX + key["_id"],
        "object": "organization.project.service_account.api_key",
        "name": key["name"],
        "created_at": unix(key["created_at"]),
        "expires_at": unix_or_none(key.get("expires_at")),
        "scopes": key["scopes"],
        "value": value,
    }


def key_object(key: Doc, owner: KeyOwner, value: str | None = None) -> KeyObject:
    shown: KeyObject = {
        "id": KEY_PREFIX + key["_id"],
        "object": "organization.project.api_key",
        "name": key["name"],
        "redacted_value": redacted(key),
        "created_at": unix(key["created_at"]),
        "expires_at": unix_or_none(key.get("expires_at")),
        "last_used_at": unix_or_none(key.get("last_used_at")),
        "owner": owner,
        "owner_project_access": "active",
        "scopes": key["scopes"],
        "strict": key.get("is_strict", False),
        "rate_limit": key.get("rate_limit"),
    }
    if value is not None:
        shown["value"] = value
    return shown


def admin_key_object(key: Doc, owner: Doc | None, value: str | None = None) -> AdminKeyObject:
    shown: AdminKeyObject = {
        "id": KEY_PREFIX + key["_id"],
        "object": "organization.admin_api_key",
        "name": key["name"],
        "redacted_value": redacted(key),
        "created_at": unix(key["created_at"]),
        "expires_at": unix_or_none(key.get("expires_at")),
        "last_used_at": unix_or_none(key.get("last_used_at")),
        "owner": {
            "type": "user" if owner else None,
            "id": owner["_id"] if owner else None,
            "name": owner["name"] if owner else None,
            "role": owner["role"] if owner else None,
        },
        "project_id": key["project"],
        "scopes": key["scopes"],
    }
    if value is not None:
        shown["value"] = value
    return shown


def key_owner(user: Doc | None, account: Doc | None) -> KeyOwner:
    """Whose key it is."""
    person: OwnerUser | None = None
    robot: OwnerAccount | None = None
    if user:
        person = {
            "id": user["_id"],
            "name": user["name"],
            "email": user["email"],
            "role": user["role"],
            "created_at": unix(user["created_at"]),
        }
    elif account:
        robot = {
            "id": account["_id"],
            "name": account["name"],
            "role": account["role"],
            "created_at": unix(account["created_at"]),
        }
    return {
        "type": "user" if person else "service_account" if robot else None,
        "user": person,
        "service_account": robot,
    }


def redacted(key: Doc) -> str:
    """What may be shown of a key: its id, none of its secret."""
    return f"sk-lut-{key['_id']}-..."
