"""Models: bases of the catalogue and tuned models of the project."""

from dataclasses import dataclass

from luthier_api.domain import View
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.store import Repository
from luthier_api.wire.models import ModelObject, base_object, tuned_object
from luthier_common.contract.events import ModelDeleted
from luthier_common.journal.advance import Outcome
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.mongo import Database, Doc


@dataclass(frozen=True)
class Served:
    """What an engine must load to answer for a name. `adapter` is None for a base itself."""

    name: str
    base: str
    adapter: Doc | None


class ModelService:
    """Models as one principal sees them, for one request."""

    def __init__(self, repository: Repository, db: Database) -> None:
        self._repository = repository
        self._db = db
        self.project = repository.principal.project

    async def list(self, view: View) -> list[ModelObject]:
        """Tuned models first, newest first; then the bases."""
        tuned = [tuned_object(model, view) for model in await self._repository.list_models()]
        return tuned + [base_object(base) for base in await self._repository.list_bases()]

    async def get(self, name: str, view: View) -> ModelObject:
        if (model := await self._repository.find_model(name)) is not None:
            return tuned_object(model, view)
        if (base := await find_base(self._db, name)) is not None:
            return base_object(base)
        raise _no_model(name)

    async def delete(self, name: str) -> None:
        """The name stops answering at once; the bytes go when nothing refers to them."""
        model = await self._repository.find_model(name)
        if model is None:
            if await find_base(self._db, name) is not None:
                raise ApiError(ErrorCode.BASE_NOT_DELETABLE, "Base models cannot be deleted.", param="model")
            raise _no_model(name)
        if model["phase"] != "published":
            headers = {"retry-after": "1"}
            raise ApiError(ErrorCode.UNAVAILABLE, "The model is just being published; try again.", headers=headers)
        deleted = await self._repository.advance(ModelDeleted(), model["_id"])
        if deleted.outcome is Outcome.ILLEGAL:
            raise _no_model(name)
        await ledger.release(self._db, f"model/{model['_id']}")

    async def resolve(self, name: str) -> Served:
        """What answers under this name."""
        if (model := await self._repository.find_model(name)) is not None:
            blob = model["blob"]
            adapter = {"model_id": model["_id"], "key": blob["key"], "manifest_sha256": blob["manifest_sha256"]}
            return Served(name, model["base"], adapter)
        if (base := await find_base(self._db, name)) is not None:
            return Served(name, base["_id"], None)
        raise _no_model(name)


def _no_model(name: str) -> ApiError:
    return ApiError(ErrorCode.MODEL_NOT_FOUND, f"The model '{name[:200]}' does not exist.", param="model")
