"""`/v1/models`. A name may hold `/` and `:`; it is one opaque key."""

from typing import Annotated

from litestar import Controller, delete, get, head
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from luthier_api.deps import Services
from luthier_api.domain import Page, Scope
from luthier_api.wire.lists import DeletedObject, ListObject, list_object
from luthier_api.wire.models import ModelObject, dressed

MAX_MODELS = 10_000


class ModelsController(Controller):
    path = "/models"
    tags = ("Models",)

    @get(operation="list_models", summary="List models", scope=Scope.MODELS_READ)
    async def list(
        self,
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_MODELS)] = MAX_MODELS,
    ) -> ListObject[ModelObject]:
        """Tuned models first, newest first; then the bases. Clients read one page, so one page holds very many."""
        view = services.view
        found = await services.models.list(Page(limit, after), view)
        return list_object([dressed(model, view) for model in found[:limit]], has_more=len(found) > limit)

    @get("/{model:path}", operation="retrieve_model", summary="Look at a model", scope=Scope.MODELS_READ)
    async def retrieve(self, model: FromPath[str], services: NamedDependency[Services]) -> ModelObject:
        view = services.view
        return dressed(await services.models.get(model.removeprefix("/"), view), view)

    @head(
        "/{model:path}",
        operation="probe_model",
        summary="Whether a model is there",
        scope=Scope.MODELS_READ,
        include_in_schema=False,
    )
    async def probe(self, model: FromPath[str], services: NamedDependency[Services]) -> None:
        await services.models.get(model.removeprefix("/"), services.view)

    @delete(
        "/{model:path}",
        operation="delete_model",
        summary="Delete a tuned model",
        scope=Scope.MODELS_WRITE,
        status_code=200,
    )
    async def delete(self, model: FromPath[str], services: NamedDependency[Services]) -> DeletedObject:
        name = model.removeprefix("/")
        await services.models.delete(name, is_retry=services.is_retry)
        return {"id": name, "object": "model", "deleted": True}
