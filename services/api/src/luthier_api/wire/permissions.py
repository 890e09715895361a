"""The object of a project's permission to call a model of another one."""

from typing import Literal, TypedDict

from luthier_api.wire.lists import unix
from luthier_common.kit.mongo import Doc


class PermissionObject(TypedDict):
    id: str
    object: Literal["checkpoint.permission"]
    created_at: int
    project_id: str


def permission_object(permission: Doc) -> PermissionObject:
    return {
        "id": permission["_id"],
        "object": "checkpoint.permission",
        "created_at": unix(permission["created_at"]),
        "project_id": permission["project"],
    }
