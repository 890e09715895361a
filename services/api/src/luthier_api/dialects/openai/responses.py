"""`/v1/responses`."""

from typing import Annotated

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from luthier_api.answers import event_stream, while_connected
from luthier_api.around.idempotency import STORED
from luthier_api.deps import AnyRequest, Services
from luthier_api.dialects.openai.response_body import CreateResponse, wanted_response
from luthier_api.domain import ASCENDING, Order, Page, Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.settings import MIB
from luthier_api.wire.lists import DeletedObject, ListObject, list_object
from luthier_api.wire.responses import InputItem, ResponseObject, response_object

MAX_BODY_BYTES = 8 * MIB


class ResponsesController(Controller):
    path = "/responses"
    tags = ("Responses",)

    @post(
        operation="create_response",
        summary="Let a model answer, and keep the conversation",
        scope=Scope.INFERENCE,
        answer=STORED,
        status_code=200,
        request_max_body_size=MAX_BODY_BYTES,
    )
    async def create(
        self,
        request: AnyRequest,
        data: JSONBody[CreateResponse],
        services: NamedDependency[Services],
    ) -> ResponseObject | Stream:
        wanted = wanted_response(data)
        if data.stream:
            events = await while_connected(request, services.responses.stream(wanted, services.view))
            return event_stream(events)
        return response_object(await while_connected(request, services.responses.create(wanted)), services.view)

    @get("/{response_id:str}", operation="retrieve_response", summary="Look at a response", scope=Scope.INFERENCE)
    async def retrieve(
        self,
        response_id: FromPath[str],
        services: NamedDependency[Services],
        stream: FromQuery[bool | None] = None,
    ) -> ResponseObject:
        if stream:
            message = "A stored response is not streamed again; leave stream out."
            raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="stream")
        return response_object(await services.responses.get(response_id), services.view)

    @delete(
        "/{response_id:str}",
        operation="delete_response",
        summary="Delete a response; what goes on from it cannot go on any more",
        scope=Scope.INFERENCE,
        status_code=200,
    )
    async def delete(self, response_id: FromPath[str], services: NamedDependency[Services]) -> DeletedObject:
        await services.responses.delete(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @get(
        "/{response_id:str}/input_items",
        operation="list_response_input_items",
        summary="List what a response's own request said, newest first",
        scope=Scope.INFERENCE,
    )
    async def list_input_items(
        self,
        response_id: FromPath[str],
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        order: FromQuery[Order] = "desc",
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    ) -> ListObject[InputItem]:
        found = await services.responses.list_input(response_id, Page(limit, after, ascending=order in ASCENDING))
        return list_object(found[:limit], has_more=len(found) > limit)

    @post(
        "/{response_id:str}/cancel",
        operation="cancel_response",
        summary="Refused: only background responses could be cancelled",
        scope=Scope.INFERENCE,
        status_code=200,
    )
    async def cancel(self, response_id: FromPath[str], services: NamedDependency[Services]) -> ResponseObject:
        await services.responses.cancel(response_id)
