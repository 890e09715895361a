"""The API's own description: OpenAPI 3.1 and a page that shows it without any other server."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from litestar import Request, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import (
    BaseSchemaObject,
    Components,
    Contact,
    OpenAPI,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)

from luthier_api import __name__ as package
from luthier_api.deps import DIALECT
from luthier_api.domain import BYTES, KNOWN_TYPES
from luthier_api.errors import ErrorCode
from luthier_api.example_answers import ANSWERS
from luthier_api.examples import REQUESTS
from luthier_api.middleware import PUBLIC

TITLE = "Luthier"
VERSION = "0.1.0"
PATH = "/docs"
OPERATION = "operation"
PUBLIC_PATHS = ("/healthz", "/readyz")
OF_ALL = (400, 401, 403, 429, 500, 503)
OF_WRITES = (404, 408, 409, 413)
_TEXT = Schema(type=OpenAPIType.STRING)
_NULLABLE = Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL])
ERROR = Schema(
    type=OpenAPIType.OBJECT,
    required=["error"],
    properties={
        "error": Schema(
            type=OpenAPIType.OBJECT,
            required=["message", "type", "param", "code"],
            properties={"message": _TEXT, "type": _TEXT, "param": _NULLABLE, "code": _NULLABLE, "request_id": _TEXT},
        )
    },
)
UPLOAD = Schema(
    type=OpenAPIType.OBJECT,
    required=["file", "purpose"],
    properties={
        "file": Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream"),
        "purpose": _TEXT,
        "expires_after[anchor]": _TEXT,
        "expires_after[seconds]": Schema(type=OpenAPIType.INTEGER),
    },
)
PART = Schema(
    type=OpenAPIType.OBJECT,
    required=["data"],
    properties={"data": Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")},
)


class OfflinePage(OpenAPIRenderPlugin):
    """One HTML file that draws the description that lies beside it."""

    def __init__(self) -> None:
        super().__init__(path="/", favicon="", style="")
        self._page = files(package).joinpath("docs.html").read_bytes()

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return self._page


def describe_errors_and_uploads(description: OpenAPI) -> None:
    """Say what Litestar cannot see: every error has one envelope, and the upload is read by hand."""
    components = description.components
    assert isinstance(components, Components)
    assert components.schemas is not None
    components.schemas["Error"] = ERROR
    components.responses = {f"Error{status}": _error(status) for status in sorted({*OF_ALL, *OF_WRITES})}
    for path, methods in (description.paths or {}).items():
        if path in PUBLIC_PATHS:
            continue
        for operation in (methods.get, methods.post, methods.delete):
            if operation is not None and operation.responses is not None:
                writes = operation is not methods.get
                statuses = (*OF_ALL, *([404] if "{" in path else []), *(OF_WRITES if writes else ()))
                refused = {str(status): Reference(f"#/components/responses/Error{status}") for status in statuses}
                operation.responses.update(refused)
                _describe_upload(operation)
                _describe_stream(operation)
                _describe_download(operation)
                _show_examples(operation)


def _error(status: int) -> OpenAPIResponse:
    """What an operation may answer with this status: always the envelope."""
    codes = sorted({f"`{error.code}`" for error in ErrorCode if error.status == status})
    content = {"application/json": OpenAPIMediaType(Reference("#/components/schemas/Error"))}
    return OpenAPIResponse(description=f"One of {', '.join(codes)}", content=content)


def _describe_upload(operation: Operation) -> None:
    forms = {"create_file": UPLOAD, "add_upload_part": PART}
    schema = forms.get(str(operation.operation_id).removeprefix("mka1_"))
    if schema is not None:
        form = {"multipart/form-data": OpenAPIMediaType(schema)}
        operation.request_body = RequestBody(content=form, required=True)


def _describe_stream(operation: Operation) -> None:
    """The same operation answers with one object, or with events where `stream` is true."""
    name = str(operation.operation_id).removeprefix("mka1_")
    told = {
        "create_chat_completion": "With stream: a chat.completion.chunk in each event, then [DONE].",
        "create_response": "With stream: typed events, from response.created to response.completed or how it ended.",
    }.get(name)
    answer = (operation.responses or {}).get("200")
    if told is None or not isinstance(answer, OpenAPIResponse) or answer.content is None:
        return
    either = answer.content["application/json"].schema
    assert isinstance(either, Schema)
    assert either.one_of
    answer.content = {
        "application/json": OpenAPIMediaType(either.one_of[0]),
        "text/event-stream": OpenAPIMediaType(Schema(type=OpenAPIType.STRING, description=told)),
    }


def _show_examples(operation: Operation) -> None:
    name = str(operation.operation_id).removeprefix("mka1_")
    answer = (operation.responses or {}).get("200")
    places = ((operation.request_body, REQUESTS), (answer, ANSWERS))
    for place, examples in places:
        if isinstance(place, RequestBody | OpenAPIResponse) and place.content and name in examples:
            place.content["application/json"].example = _Example(examples[name])


@dataclass
class _Example(BaseSchemaObject):
    """Shown as it is: Litestar leaves out what is null, which clients would take for missing."""

    value: Any

    def to_schema(self) -> dict[str, Any]:
        return dict(self.value)


def _describe_download(operation: Operation) -> None:
    """The same bytes, typed as the dialect's clients take them."""
    types = {"download_file": (BYTES,), "mka1_download_file": (*KNOWN_TYPES.values(), "text/plain")}
    answer = (operation.responses or {}).get("200")
    if isinstance(answer, OpenAPIResponse) and (known := types.get(str(operation.operation_id))):
        answer.description = "The file, byte for byte"
        answer.content = {each: OpenAPIMediaType(Schema(content_media_type=each)) for each in known}


def _operation_id(handler: HTTPRouteHandler, _method: object, _path: object) -> str:
    """The operation's name; the same operation of another dialect is named after that one too."""
    dialect = handler.opt.get(DIALECT, "openai")
    operation = str(handler.opt[OPERATION])
    return operation if dialect == "openai" else f"{dialect}_{operation}"


def openapi_config() -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", description="An API key: sk-lut-...")
    return OpenAPIConfig(
        title=TITLE,
        version=VERSION,
        description="Fine-tuning on your own machines, for clients written for OpenAI.",
        contact=Contact(name="Luthier"),
        components=Components(security_schemes={"key": bearer}),
        security=[{"key": []}],
        render_plugins=[OfflinePage()],
        openapi_router=Router(path=PATH, route_handlers=[], opt={PUBLIC: True}, include_in_schema=False),
        use_handler_docstrings=True,
        operation_id_creator=_operation_id,
    )
