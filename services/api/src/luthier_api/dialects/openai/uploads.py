"""`/v1/uploads`: a file in parts."""

from typing import Annotated, Any, Literal

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from pydantic import BeforeValidator, Field, StrictStr

from luthier_api.deps import Services
from luthier_api.dialects.openai.fields import Strict
from luthier_api.domain import Scope
from luthier_api.services.uploads import MAX_PARTS, WantedUpload
from luthier_api.wire.uploads import PartObject, UploadObject, part_object, upload_object

MAX_NAME = 4096


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
ShownText = Annotated[StrictStr, Field(pattern=r"^[ -~]{1,255}$")]


class ExpiresAfter(Strict):
    """When the file expires, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: Whole


class CreateUpload(Strict):
    """The file that will be sent in parts."""

    bytes: Annotated[Whole, Field(ge=1)]
    filename: Annotated[StrictStr, Field(min_length=1, max_length=MAX_NAME)]
    mime_type: ShownText
    purpose: StrictStr
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Strict):
    """The parts in the order of the file, and what its md5 must be."""

    part_ids: Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_PARTS)]
    md5: Annotated[StrictStr, Field(pattern=r"^[0-9A-Fa-f]{32}$")] | None = None


class UploadsController(Controller):
    path = "/uploads"
    tags = ("Uploads",)

    @post(operation="create_upload", summary="Begin an upload in parts", scope=Scope.FILES_WRITE, status_code=200)
    async def create(self, data: JSONBody[CreateUpload], services: NamedDependency[Services]) -> UploadObject:
        expiry = data.expires_after
        wanted = WantedUpload(
            num_bytes=data.bytes,
            filename=data.filename,
            mime_type=data.mime_type,
            purpose=data.purpose,
            anchor=expiry.anchor if expiry else None,
            expiry_s=expiry.seconds if expiry else None,
        )
        return upload_object(await services.uploads.create(wanted), services.view)

    @post(
        "/{upload_id:str}/parts",
        operation="add_upload_part",
        summary="Add a part; parts may come at once and in any order",
        scope=Scope.FILES_WRITE,
        status_code=200,
        request_max_body_size=None,
    )
    async def add_part(self, upload_id: FromPath[str], services: NamedDependency[Services]) -> PartObject:
        return part_object(await services.uploads.add_part(upload_id, services.form), upload_id)

    @post(
        "/{upload_id:str}/complete",
        operation="complete_upload",
        summary="Make the file of the parts",
        scope=Scope.FILES_WRITE,
        status_code=200,
    )
    async def complete(
        self,
        upload_id: FromPath[str],
        data: JSONBody[CompleteUpload],
        services: NamedDependency[Services],
    ) -> UploadObject:
        upload, file = await services.uploads.complete(upload_id, data.part_ids, data.md5)
        return upload_object(upload, services.view, file)

    @post(
        "/{upload_id:str}/cancel",
        operation="cancel_upload",
        summary="Cancel an upload",
        scope=Scope.FILES_WRITE,
        status_code=200,
    )
    async def cancel(self, upload_id: FromPath[str], services: NamedDependency[Services]) -> UploadObject:
        return upload_object(await services.uploads.cancel(upload_id), services.view)
