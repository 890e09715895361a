"""Audit rows as clients see them, after OpenAI's audit logs. `operation` and what follows it are ours."""

from typing import Literal, TypedDict

from luthier_api.wire.lists import unix
from luthier_api.wire.tenancy import KEY_PREFIX
from luthier_common.kit.mongo import Doc

TYPES = {
    "create_project_api_key": "api_key.created",
    "create_service_account_api_key": "api_key.created",
    "create_admin_api_key": "api_key.created",
    "rotate_project_api_key": "api_key.updated",
    "delete_project_api_key": "api_key.deleted",
    "delete_admin_api_key": "api_key.deleted",
    "create_project": "project.created",
    "modify_project": "project.updated",
    "archive_project": "project.archived",
    "create_service_account": "service_account.created",
    "modify_service_account": "service_account.updated",
    "delete_service_account": "service_account.deleted",
    "create_user": "user.added",
    "modify_user": "user.updated",
    "delete_user": "user.deleted",
}
"""OpenAI's words for operations that it logs; all others go by their own name."""


class AuditKey(TypedDict):
    id: str


class AuditActor(TypedDict):
    type: Literal["api_key"]
    api_key: AuditKey


class AuditProject(TypedDict):
    id: str


class AuditLogObject(TypedDict):
    id: str
    object: Literal["organization.audit_log"]
    type: str
    effective_at: int
    actor: AuditActor
    project: AuditProject
    operation: str
    thing: str | None
    status: int
    code: str | None
    end_user: str | None
    address: str | None
    request_id: str
    replayed: bool
    hash: str


def audit_log_object(row: Doc) -> AuditLogObject:
    return {
        "id": row["_id"],
        "object": "organization.audit_log",
        "type": TYPES.get(row["operation"]) or str(row["operation"]),
        "effective_at": unix(row["at"]),
        "actor": {"type": "api_key", "api_key": {"id": f"{KEY_PREFIX}{row['key']}"}},
        "project": {"id": row["project"]},
        "operation": row["operation"],
        "thing": row["thing"],
        "status": row["status"],
        "code": row["code"],
        "end_user": row["end_user"],
        "address": row.get("address"),
        "request_id": row["request_id"],
        "replayed": row["replayed"],
        "hash": row["hash"],
    }
