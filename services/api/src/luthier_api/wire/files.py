"""The file object."""

from typing import Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.lists import unix, unix_or_none
from luthier_common.kit.mongo import Doc

FIELDS = ("created_at", "bytes", "filename", "purpose", "status", "verdict", "expires_at", "sha256", "object_key")
"""What a file document is read for."""


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    expires_at: int | None
    sha256: str


def file_object(file: Doc, view: View) -> FileObject:
    return {
        "id": view.id(file["_id"]),
        "object": "file",
        "bytes": file["bytes"],
        "created_at": unix(file["created_at"]),
        "filename": file["filename"],
        "purpose": file["purpose"],
        "status": file["status"],
        "status_details": _problem(file),
        "expires_at": unix_or_none(file.get("expires_at")),
        "sha256": file["sha256"],
    }


def _problem(file: Doc) -> str | None:
    problem = (file.get("verdict") or {}).get("problem")
    return problem["message"] if problem else None
