"""`/v1/models`. A name may hold `/` and `:`; it is one opaque key."""

from litestar import Controller, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from luthier_api.domain import Scope, View
from luthier_api.services.models import ModelService
from luthier_api.wire.lists import DeletedObject, ListObject, list_object
from luthier_api.wire.models import ModelObject


class ModelsController(Controller):
    path = "/models"
    tags = ("Models",)

    @get(operation="list_models", summary="List models", scope=Scope.MODELS_READ)
    async def list(self, models: NamedDependency[ModelService], view: NamedDependency[View]) -> ListObject[ModelObject]:
        return list_object(await models.list(view), has_more=False)

    @get("/{model:path}", operation="retrieve_model", summary="Look at a model", scope=Scope.MODELS_READ)
    async def retrieve(
        self, model: FromPath[str], models: NamedDependency[ModelService], view: NamedDependency[View]
    ) -> ModelObject:
        return await models.get(model.removeprefix("/"), view)

    @delete(
        "/{model:path}",
        operation="delete_model",
        summary="Delete a tuned model",
        scope=Scope.MODELS_WRITE,
        status_code=200,
    )
    async def delete(self, model: FromPath[str], models: NamedDependency[ModelService]) -> DeletedObject:
        name = model.removeprefix("/")
        await models.delete(name)
        return {"id": name, "object": "model", "deleted": True}
