"""`/v1/files`."""

from typing import Annotated, Literal
from urllib.parse import quote

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from luthier_api.deps import Services
from luthier_api.domain import Page, Scope
from luthier_api.wire.files import FileObject, file_object
from luthier_api.wire.lists import DeletedObject, ListObject, list_object

MAX_FILES = 10_000


class FilesController(Controller):
    path = "/files"
    tags = ("Files",)

    @post(
        operation="create_file",
        summary="Upload a file",
        scope=Scope.FILES_WRITE,
        status_code=200,
        request_max_body_size=None,
    )
    async def create(self, services: NamedDependency[Services]) -> FileObject:
        return file_object(await services.files.create(services.form, services.core), services.view)

    @get(operation="list_files", summary="List files", scope=Scope.FILES_READ)
    async def list(
        self,
        services: NamedDependency[Services],
        purpose: FromQuery[str | None] = None,
        sha256: FromQuery[str | None] = None,
        after: FromQuery[str | None] = None,
        order: FromQuery[Literal["asc", "desc", "ascending", "descending"]] = "desc",
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_FILES)] = MAX_FILES,
    ) -> ListObject[FileObject]:
        view = services.view
        found = await services.files.list(Page(limit, after, ascending=order.startswith("asc")), purpose, sha256)
        return list_object([file_object(file, view) for file in found[:limit]], has_more=len(found) > limit)

    @get("/{file_id:str}", operation="retrieve_file", summary="Look at a file", scope=Scope.FILES_READ)
    async def retrieve(self, file_id: FromPath[str], services: NamedDependency[Services]) -> FileObject:
        return file_object(await services.files.get(file_id), services.view)

    @get(
        "/{file_id:str}/content",
        operation="download_file",
        summary="Read a file's bytes",
        scope=Scope.FILES_READ,
    )
    async def content(self, file_id: FromPath[str], services: NamedDependency[Services]) -> Stream:
        file, chunks = await services.files.content(file_id)
        headers = {
            "content-length": str(file["bytes"]),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file['filename'], safe='')}",
            "x-content-type-options": "nosniff",
        }
        return Stream(chunks, headers=headers, media_type=services.view.media_type(file["filename"]))

    @delete(
        "/{file_id:str}", operation="delete_file", summary="Delete a file", scope=Scope.FILES_WRITE, status_code=200
    )
    async def delete(self, file_id: FromPath[str], services: NamedDependency[Services]) -> DeletedObject:
        return {
            "id": services.view.id(await services.files.delete(file_id, is_retry=services.is_retry)),
            "object": "file",
            "deleted": True,
        }
