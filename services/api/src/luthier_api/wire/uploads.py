"""Uploads and their parts, as clients see them."""

from typing import Literal, TypedDict

from luthier_api.domain import View
from luthier_api.wire.files import FileObject, file_object
from luthier_api.wire.lists import unix
from luthier_common.kit.mongo import Doc


class UploadObject(TypedDict):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class PartObject(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


def upload_object(upload: Doc, view: View, file: Doc | None = None) -> UploadObject:
    return {
        "id": upload["_id"],
        "object": "upload",
        "bytes": upload["bytes"],
        "created_at": unix(upload["created_at"]),
        "expires_at": unix(upload["expires_at"]),
        "filename": upload["filename"],
        "purpose": upload["purpose"],
        "status": upload["status"],
        "file": file_object(file, view) if file else None,
    }


def part_object(part: Doc, upload_id: str) -> PartObject:
    return {
        "id": part["id"],
        "object": "upload.part",
        "created_at": unix(part["created_at"]),
        "upload_id": upload_id,
    }
