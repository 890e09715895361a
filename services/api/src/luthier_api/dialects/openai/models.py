"""`/v1/models`. A name may hold `/` and `:`; it is one opaque key."""

from typing import Any

from litestar import Controller, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from luthier_api.domain import Scope
from luthier_api.services.models import ModelService
from luthier_api.wire.lists import Wire, list_object


class ModelsController(Controller):
    path = "/v1/models"
    tags = ("Models",)

    @get(operation_id="list_models", summary="List models", scope=Scope.MODELS_READ)
    async def list(self, models: NamedDependency[ModelService]) -> Wire:
        return list_object(await models.list(), has_more=False)

    @get("/{model:path}", operation_id="retrieve_model", summary="Look at a model", scope=Scope.MODELS_READ)
    async def retrieve(self, model: FromPath[str], models: NamedDependency[ModelService]) -> Wire:
        return await models.get(model.removeprefix("/"))

    @delete(
        "/{model:path}",
        operation_id="delete_model",
        summary="Delete a tuned model",
        scope=Scope.MODELS_WRITE,
        status_code=200,
    )
    async def delete(self, model: FromPath[str], models: NamedDependency[ModelService]) -> dict[str, Any]:
        name = model.removeprefix("/")
        await models.delete(name)
        return {"id": name, "object": "model", "deleted": True}
