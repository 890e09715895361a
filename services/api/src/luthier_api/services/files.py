"""Files: uploads that stream into the object store, what is known of them, and their end."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import timedelta

from luthier_api.domain import Page, clean_filename
from luthier_api.errors import ApiError, ErrorCode, not_found
from luthier_api.settings import ApiSettings
from luthier_api.store import RELEASE_DUE, Repository, release_bytes
from luthier_api.upload import Upload
from luthier_common.contract.events import FileDeleted, FileUploaded
from luthier_common.contract.ids import FILE_PREFIX, canonical_id, new_id
from luthier_common.journal.advance import Outcome
from luthier_common.kit import ledger
from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore, Stored

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 2_592_000
ANCHOR = "expires_after[anchor]"
SECONDS = "expires_after[seconds]"


class FileService:
    """Files of one principal, for one request."""

    def __init__(
        self, repository: Repository, db: Database, objects: ObjectStore, clock: Clock, settings: ApiSettings
    ) -> None:
        self._repository = repository
        self._db = db
        self._objects = objects
        self._clock = clock
        self._settings = settings

    async def create(self, upload: Upload) -> Doc:
        """Store the file while it arrives. What is refused leaves nothing behind."""
        now = self._clock.now()
        file_id = new_id(FILE_PREFIX, now)
        principal = self._repository.principal
        key = f"{principal.org}/{principal.project}/files/{file_id}"
        is_kept = False
        try:
            filename, stored = await self._store(upload, key)
            purpose, expiry_s = read_fields(upload.fields)
            await ledger.record(
                self._db,
                key,
                sha256=stored.sha256,
                num_bytes=stored.bytes,
                org=principal.org,
                project=principal.project,
                reference=f"file/{file_id}",
            )
            is_kept = True
        except ApiError:
            await upload.drain()
            raise
        finally:
            if not is_kept:
                await self._objects.delete(key)
        fact = FileUploaded(
            filename=filename, bytes=stored.bytes, sha256=stored.sha256, purpose=purpose, object_key=key
        )
        expires_at = now + timedelta(seconds=expiry_s) if expiry_s else None
        fields = fact.model_dump(mode="json") | {"expires_at": expires_at, "verdict": None}
        created = await self._repository.create(fact, file_id, fields)
        assert created.doc is not None
        return created.doc

    async def get(self, file_id: str) -> Doc:
        file = await self._repository.find_file(canonical_id(file_id))
        if file is None:
            raise not_found("File object", file_id)
        return file

    async def list(self, page: Page, purpose: str | None) -> list[Doc]:
        return await self._repository.list_files(page.after_a(FILE_PREFIX), purpose)

    async def content(self, file_id: str) -> tuple[Doc, AsyncIterator[bytes]]:
        file = await self.get(file_id)
        if await self._objects.head(file["object_key"]) is None:
            raise not_found("File object", file_id)
        return file, self._objects.get(file["object_key"])

    async def delete(self, file_id: str) -> str:
        """The file is gone for users at once; its bytes stay while a job refers to them."""
        file = await self.get(file_id)
        deleted = await self._repository.advance(FileDeleted(), file["_id"], also={RELEASE_DUE: True})
        if deleted.outcome is Outcome.ILLEGAL:
            raise not_found("File object", file_id)
        await release_bytes(self._db, file["_id"])
        return str(file["_id"])

    async def _store(self, upload: Upload, key: str) -> tuple[str, Stored]:
        found: tuple[str, Stored] | None = None
        async with aclosing(upload.files()) as parts:
            async for part in parts:
                if part.name != "file":
                    message, param = f"Unknown file part: {part.name[:100]}", part.name[:100]
                    raise ApiError(ErrorCode.UNKNOWN_PARAMETER, message, param=param)
                if found is not None:
                    message = "Only one file may be uploaded at a time."
                    raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param="file")
                check_fields(upload.fields)
                chunks = _limited(part.chunks, self._settings.max_file_bytes)
                found = clean_filename(part.filename), await self._objects.put(key, chunks)
        if found is None:
            raise ApiError(ErrorCode.MISSING_PARAMETER, "Missing required parameter: 'file'.", param="file")
        return found


def check_fields(fields: Mapping[str, str]) -> None:
    """Refuse what is wrong in the fields so far; they may come before or after the file."""
    for name in fields:
        if name not in ("purpose", ANCHOR, SECONDS):
            raise ApiError(ErrorCode.UNKNOWN_PARAMETER, f"Unrecognized request argument supplied: {name}", param=name)
    if (purpose := fields.get("purpose")) is not None and purpose not in PURPOSES:
        raise ApiError(ErrorCode.INVALID_VALUE, f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")


def read_fields(fields: Mapping[str, str]) -> tuple[str, int | None]:
    """Purpose, and the seconds after which the file expires."""
    check_fields(fields)
    if "purpose" not in fields:
        raise ApiError(ErrorCode.MISSING_PARAMETER, "Missing required parameter: 'purpose'.", param="purpose")
    if ANCHOR not in fields and SECONDS not in fields:
        return fields["purpose"], None
    if fields.get(ANCHOR) != "created_at":
        raise ApiError(ErrorCode.INVALID_VALUE, "The anchor must be created_at.", param="expires_after.anchor")
    text = fields.get(SECONDS, "")
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not MIN_EXPIRY_S <= seconds <= MAX_EXPIRY_S:
        message = f"The seconds must be {MIN_EXPIRY_S} to {MAX_EXPIRY_S}."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="expires_after.seconds")
    return fields["purpose"], seconds


async def _limited(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > most:
            raise ApiError(ErrorCode.TOO_LARGE, f"The file is larger than {most} bytes.", param="file")
        yield chunk
