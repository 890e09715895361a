"""Models: bases of the catalogue and tuned models of the project."""

from dataclasses import dataclass

from luthier_api.domain import Page, View
from luthier_api.errors import ApiError, ErrorCode, bad_cursor
from luthier_api.store import END_OF_FILE, Repository, checkpoints, permissions, release_bytes
from luthier_api.wire.checkpoints import checkpoint_id, read_called
from luthier_api.wire.models import ModelObject, base_object, checkpoint_model_object, tuned_object
from luthier_common.contract.events import FileDeleted, ModelDeleted
from luthier_common.journal.advance import Outcome
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.failpoints import failpoint
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

    async def list(self, page: Page, view: View) -> list[ModelObject]:
        """Tuned models first, newest first; then the bases. One more than the page holds, if there are more."""
        shown: list[ModelObject] = []
        base: str | None = None
        model_id = None if page.after is None else await self._repository.find_model_id(page.after)
        if page.after is not None and model_id is None:
            known = await find_base(self._db, page.after)
            if known is None:
                raise bad_cursor("a model of this list")
            base = str(known["_id"])
        else:
            tuned = await self._repository.list_models(Page(page.limit, model_id))
            shown = [tuned_object(model, view) for model in tuned]
        if (left := page.limit + 1 - len(shown)) > 0:
            shown += [base_object(found) for found in await self._repository.list_bases(left, base)]
        return shown

    async def get(self, name: str, view: View) -> ModelObject:
        if (model := await self._repository.find_model(name)) is not None:
            return tuned_object(model, view)
        if (base := await find_base(self._db, name)) is not None:
            return base_object(base)
        if (found := await _find_checkpoint(self._repository, name)) is not None:
            job, row = found
            return checkpoint_model_object(name, job, row, view)
        if (model := await self._repository.find_model_by_alias(name)) is not None:
            return tuned_object(model, view)
        raise _no_model(name)

    async def check_own(self, name: str, *, may_be_gone: bool = False) -> None:
        """ApiError unless this is a tuned model or a checkpoint of this project.

        `may_be_gone`: it may also be a checkpoint whose bytes are not stored any more.
        """
        try:
            found = await self._resolve_in(self._repository, name)
        except ApiError as error:
            if may_be_gone and error.error is ErrorCode.CHECKPOINT_GONE:
                return
            raise
        if found is None:
            raise _no_model(name)

    async def delete(self, name: str, *, is_retry: bool = False) -> None:
        """The name stops answering at once; the bytes go when nothing refers to them."""
        model = await self._repository.find_model(name)
        if model is None and is_retry and (gone := await self._repository.find_deleted_model(name)) is not None:
            await self._let_go(gone, name)
            return
        if model is None:
            if await find_base(self._db, name) is not None:
                raise ApiError(ErrorCode.BASE_NOT_DELETABLE, "Base models cannot be deleted.", param="model")
            raise _no_model(name)
        if model["phase"] != "published":
            headers = {"retry-after": "1"}
            raise ApiError(ErrorCode.UNAVAILABLE, "The model is just being published; try again.", headers=headers)
        for file in model.get("weights_files") or ():
            await self._repository.advance(FileDeleted(), file["id"], also=END_OF_FILE)
            await release_bytes(self._db, file["id"])
        await failpoint("models.mid_delete")
        deleted = await self._repository.advance(ModelDeleted(), model["_id"])
        if deleted.outcome is Outcome.ILLEGAL:
            raise _no_model(name)
        await failpoint("models.before_release")
        await self._let_go(model["_id"], name)

    async def _let_go(self, model_id: str, name: str) -> None:
        await ledger.release(self._db, f"model/{model_id}")
        await permissions.revoke_all(self._repository, name)

    async def resolve(self, name: str) -> Served:
        """What answers under this name: of this project, of everybody, or lent by a project of the organisation."""
        if (served := await self._resolve_in(self._repository, name)) is not None:
            return served
        if (base := await find_base(self._db, name)) is not None:
            return Served(name, base["_id"], None)
        lender = await permissions.lender_of(self._repository, name)
        if lender is not None and (served := await self._resolve_in(lender, name)) is not None:
            return served
        if (model := await self._repository.find_model_by_alias(name)) is not None:
            return _served(name, model["base"], model["base_digest"], model["_id"], model["blob"])
        raise _no_model(name)

    @staticmethod
    async def _resolve_in(repository: Repository, name: str) -> Served | None:
        if (model := await repository.find_model(name)) is not None:
            return _served(name, model["base"], model["base_digest"], model["_id"], model["blob"])
        if (found := await _find_checkpoint(repository, name)) is not None:
            job, row = found
            blob = row["body"]["data"]["blob"]
            return _served(name, job["spec"]["model"], job["base_digest"], checkpoint_id(row), blob)
        return None


async def _find_checkpoint(repository: Repository, name: str) -> tuple[Doc, Doc] | None:
    """The job and the fact behind a checkpoint's name; ApiError when its bytes are gone."""
    if (called := read_called(name)) is None:
        return None
    model, generation, step = called
    job = await checkpoints.find_job_named(repository, model)
    row = await checkpoints.find_saved(repository, job["_id"], generation=generation, step=step) if job else None
    if job is None or row is None:
        return None
    if not await checkpoints.stored_keys(repository, [row["body"]["data"]["blob"]["key"]]):
        message = f"The checkpoint '{name[:200]}' has been removed from storage."
        raise ApiError(ErrorCode.CHECKPOINT_GONE, message, param="model")
    return job, row


def _served(name: str, base: str, base_digest: str, adapter_id: str, blob: Doc) -> Served:
    adapter = {
        "model_id": adapter_id,
        "key": blob["key"],
        "manifest_sha256": blob["manifest_sha256"],
        "base_digest": base_digest,
    }
    return Served(name, base, adapter)


def _no_model(name: str) -> ApiError:
    return ApiError(ErrorCode.MODEL_NOT_FOUND, f"The model '{name[:200]}' does not exist.", param="model")
