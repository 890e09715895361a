"""Files: uploads that stream into the object store, what is known of them, and their end."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from luthier_api.domain import Page, clean_filename
from luthier_api.errors import ApiError, ErrorCode, not_found
from luthier_api.services.checkpoint_files import find_checkpoint_file
from luthier_api.services.incoming import Incoming
from luthier_api.settings import ApiSettings
from luthier_api.store import END_OF_FILE, Repository, release_bytes
from luthier_api.transfers import WAIT_S, Downloads
from luthier_api.upload import Upload
from luthier_api.wire.checkpoints import read_weights_file_id
from luthier_common.contract.events import FileDeleted, FileUploaded
from luthier_common.contract.ids import FILE_PREFIX, canonical_id, new_id
from luthier_common.journal.advance import Outcome
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore, Stored

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 2_592_000
ANCHOR = "expires_after[anchor]"
SECONDS = "expires_after[seconds]"
BODY_MARGIN_S = 600.0
"""What is left for the store when the last byte of a body came just in time."""


def longest_request_s(settings: ApiSettings) -> float:
    """After so long, nothing is stored any more for a key that was taken back."""
    return settings.key_cache_s + WAIT_S + settings.upload_timeout_s + BODY_MARGIN_S


class FileService:
    """Files of one principal, for one request."""

    def __init__(
        self,
        repository: Repository,
        db: Database,
        objects: ObjectStore,
        clock: Clock,
        settings: ApiSettings,
        downloads: Downloads,
    ) -> None:
        self._repository = repository
        self._db = db
        self._objects = objects
        self._clock = clock
        self._settings = settings
        self._downloads = downloads

    async def create(self, upload: Upload, core: str | None = None) -> Doc:
        """Store the file while it arrives. What is refused leaves nothing behind.

        `core` was reserved for the request: a file that was made with it already is the answer.
        """
        try:
            return await self._create(upload, core)
        except ApiError:
            await upload.drain()
            raise

    async def get(self, file_id: str) -> Doc:
        known = canonical_id(file_id)
        file = await self._repository.find_file(known)
        file = file or await find_checkpoint_file(self._repository, self._objects, known)
        if file is None:
            raise not_found("File object", file_id)
        return file

    async def list(self, page: Page, purpose: str | None, sha256: str | None = None) -> list[Doc]:
        wanted = {name: value for name, value in (("purpose", purpose), ("sha256", sha256)) if value}
        return await self._repository.list_files(page.after_a(FILE_PREFIX), wanted)

    async def content(self, file_id: str) -> tuple[Doc, AsyncIterator[bytes]]:
        """The file and its bytes, which hold a place until they have been read."""
        file = await self.get(file_id)
        if await self._objects.head(file["object_key"]) is None:
            raise not_found("File object", file_id)
        chunks = self._read(file["object_key"])
        await anext(chunks)
        return file, chunks

    async def _read(self, key: str) -> AsyncIterator[bytes]:
        """The first piece is empty: whoever has it holds a place, and gives it back however the reading ends."""
        with self._downloads.place(self._repository.principal):
            yield b""
            async for chunk in self._objects.get(key):
                yield chunk

    async def delete(self, file_id: str, *, is_retry: bool = False) -> str:
        """The file is gone for users at once; its bytes stay while a job refers to them."""
        if is_retry and (gone := await self._repository.find_deleted_file(canonical_id(file_id))) is not None:
            await release_bytes(self._db, gone)
            return gone
        file = await self.get(file_id)
        deleted = await self._repository.advance(FileDeleted(), file["_id"], also=END_OF_FILE)
        if deleted.outcome is Outcome.ILLEGAL:
            if read_weights_file_id(file["_id"]) is not None:
                message = "The file belongs to a checkpoint and cannot be deleted alone."
                raise ApiError(ErrorCode.INVALID_STATE, message, param="id")
            raise not_found("File object", file_id)
        await failpoint("files.before_release")
        await release_bytes(self._db, file["_id"])
        return str(file["_id"])

    async def _create(self, upload: Upload, core: str | None) -> Doc:
        fresh = new_id(FILE_PREFIX, self._clock.now())
        file_id = fresh if core is None else f"{FILE_PREFIX}{core}"
        who, within_s = self._repository.principal, self._settings.upload_timeout_s + BODY_MARGIN_S
        path, reference, most = f"files/{fresh}", f"file/{file_id}", self._settings.max_project_bytes
        async with Incoming(self._db, self._objects, who, path, reference, within_s, most) as incoming:
            filename, stored = await self._store(upload, incoming)
            purpose, expiry_s = read_fields(upload.fields)
            await incoming.keep(stored)
        fact = FileUploaded(
            filename=filename, bytes=stored.bytes, sha256=stored.sha256, purpose=purpose, object_key=stored.key
        )
        fields = fact.model_dump(mode="json") | {"expires_at": None, "verdict": None}
        created = await self._repository.create(fact, file_id, fields, expires_in_s=expiry_s)
        await failpoint("files.after_create")
        assert created.doc is not None
        if created.doc["object_key"] != stored.key:
            await incoming.drop()
            if (created.doc["sha256"], created.doc["filename"]) != (stored.sha256, filename):
                code = ErrorCode.IDEMPOTENCY_KEY_REUSED
                raise ApiError(code, code.sentence, param="Idempotency-Key")
        return created.doc

    async def _store(self, upload: Upload, incoming: Incoming) -> tuple[str, Stored]:
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
                stored = await incoming.put(part.chunks, most=self._settings.max_file_bytes, param="file")
                found = clean_filename(part.filename), stored
        if found is None:
            raise ApiError(ErrorCode.MISSING_PARAMETER, "Missing required parameter: 'file'.", param="file")
        return found


def check_fields(fields: Mapping[str, str]) -> None:
    """Refuse what is wrong in the fields so far; they may come before or after the file."""
    for name in fields:
        if name not in ("purpose", ANCHOR, SECONDS):
            raise ApiError(ErrorCode.UNKNOWN_PARAMETER, f"Unrecognized request argument supplied: {name}", param=name)
    if (purpose := fields.get("purpose")) is not None:
        check_purpose(purpose)


def read_fields(fields: Mapping[str, str]) -> tuple[str, int | None]:
    """Purpose, and the seconds after which the file expires."""
    check_fields(fields)
    if "purpose" not in fields:
        raise ApiError(ErrorCode.MISSING_PARAMETER, "Missing required parameter: 'purpose'.", param="purpose")
    if ANCHOR not in fields and SECONDS not in fields:
        return fields["purpose"], None
    text = fields.get(SECONDS, "")
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    check_expiry(fields.get(ANCHOR), seconds)
    return fields["purpose"], seconds


def check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise ApiError(ErrorCode.INVALID_VALUE, f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")


def check_expiry(anchor: str | None, seconds: int | None) -> None:
    if anchor != "created_at":
        raise ApiError(ErrorCode.INVALID_VALUE, "The anchor must be created_at.", param="expires_after.anchor")
    if not MIN_EXPIRY_S <= (seconds or 0) <= MAX_EXPIRY_S:
        message = f"The seconds must be {MIN_EXPIRY_S} to {MAX_EXPIRY_S}."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="expires_after.seconds")
