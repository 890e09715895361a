"""The file object."""

from luthier_api.wire.lists import Wire, unix
from luthier_common.kit.mongo import Doc

FIELDS = ("created_at", "bytes", "filename", "purpose", "status", "verdict", "expires_at", "sha256", "object_key")
"""What a file document is read for."""


def file_object(file: Doc) -> Wire:
    return {
        "id": file["_id"],
        "object": "file",
        "bytes": file["bytes"],
        "created_at": unix(file["created_at"]),
        "filename": file["filename"],
        "purpose": file["purpose"],
        "status": file["status"],
        "status_details": _problem(file),
        "expires_at": unix(file.get("expires_at")),
        "sha256": file["sha256"],
    }


def _problem(file: Doc) -> str | None:
    problem = (file.get("verdict") or {}).get("problem")
    return problem["message"] if problem else None
