"""Uploads in parts: stored as they come, in any order and at once; put together in the order that the client names."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from luthier_api.domain import clean_filename
from luthier_api.errors import NO_RETRY, ApiError, ErrorCode, not_found
from luthier_api.idempotency import Ids
from luthier_api.services.files import BODY_MARGIN_S, check_expiry, check_purpose
from luthier_api.services.incoming import Incoming
from luthier_api.settings import ApiSettings
from luthier_api.store import Repository
from luthier_api.store.uploads import PENDING, UploadStore, let_parts_go
from luthier_api.transfers import Uploads
from luthier_api.upload import Upload
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import FileUploaded
from luthier_common.contract.ids import FILE_PREFIX, new_id
from luthier_common.journal.advance import create
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore, Stored

UPLOAD_PREFIX = "upload_"
PART_PREFIX = "part_"
MAX_PARTS = 10_000
SPARE_PARTS = 16
"""Parts of the largest size that may be stored beyond what the file needs: those that were sent again."""
_TURNS: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""By upload: a small request that asks for gigabytes to be copied does so once at a time."""


@dataclass(frozen=True)
class WantedUpload:
    """What a client says of the file before it sends it."""

    num_bytes: int
    filename: str
    mime_type: str
    purpose: str
    anchor: str | None = None
    expiry_s: int | None = None


class UploadService:
    """Uploads of one principal, for one request."""

    def __init__(
        self,
        repository: Repository,
        db: Database,
        objects: ObjectStore,
        clock: Clock,
        settings: ApiSettings,
        ids: Ids,
        places: Uploads,
    ) -> None:
        self._ids = ids
        self._places = places
        self._principal = repository.principal
        self._actor = repository.actor
        self._store = UploadStore(repository)
        self._db = db
        self._objects = objects
        self._clock = clock
        self._settings = settings

    async def create(self, wanted: WantedUpload) -> Doc:
        """A pending upload. The id of its file is fixed here, so that completing it twice makes one file."""
        check_purpose(wanted.purpose)
        if wanted.num_bytes > self._settings.max_upload_bytes:
            message = f"An upload has at most {self._settings.max_upload_bytes} bytes."
            raise ApiError(ErrorCode.TOO_LARGE, message, param="bytes")
        if wanted.anchor is not None or wanted.expiry_s is not None:
            check_expiry(wanted.anchor, wanted.expiry_s)
        fields = {
            "bytes": wanted.num_bytes,
            "filename": clean_filename(wanted.filename),
            "mime_type": wanted.mime_type,
            "purpose": wanted.purpose,
            "expiry_s": wanted.expiry_s,
            "file_id": self._ids.new(FILE_PREFIX),
            "owner": self._principal.owner,
        }
        upload_id = self._ids.new(UPLOAD_PREFIX)
        made = await self._store.create(upload_id, fields, expiry_s=self._settings.upload_expiry_s)
        await failpoint("uploads.after_create")
        return made

    async def add_part(self, upload_id: str, body: Upload) -> Doc:
        """Store a part while it arrives. What is refused leaves nothing behind."""
        try:
            return await self._add_part(upload_id, body)
        except ApiError:
            await body.drain()
            raise

    async def complete(self, upload_id: str, part_ids: Sequence[str], md5: str | None) -> tuple[Doc, Doc]:
        """The completed upload and its file; once more for whoever names the same parts again."""
        await self._get(upload_id, with_parts=False)  # nobody else waits, or learns that there is something to wait for
        turn = _TURNS.setdefault(upload_id, asyncio.Lock())
        async with turn:
            upload = await self._get(upload_id)
            if upload["status"] == PENDING:
                parts = _in_order(upload, part_ids)
                upload = await self._put_together(upload, parts, md5)
        if upload["status"] != "completed" or upload["part_ids"] != list(part_ids):
            raise _wrong_state("complete", upload)
        file = await make_file(self._db, upload, self._actor)
        await failpoint("uploads.after_file")
        if file["phase"] == "deleted":
            raise not_found("File object", upload["file_id"])
        await let_parts_go(self._db, upload)
        return upload, file

    async def cancel(self, upload_id: str) -> Doc:
        """Cancelled at once; a second cancel finds it so."""
        upload = await self._get(upload_id)
        if upload["status"] == PENDING:
            upload = await self._store.end(upload_id, "cancelled") or await self._get(upload_id)
        if upload["status"] != "cancelled":
            raise _wrong_state("cancel", upload)
        await failpoint("uploads.after_cancel")
        await let_parts_go(self._db, upload)
        return upload

    async def _get(self, upload_id: str, *, with_parts: bool = True) -> Doc:
        upload = await self._store.find(upload_id, with_parts=with_parts)
        if upload is None:
            raise not_found("Upload", upload_id)
        return upload

    async def _add_part(self, upload_id: str, body: Upload) -> Doc:
        upload = await self._get(upload_id, with_parts=False)
        if upload["status"] != PENDING:
            raise _wrong_state("add a part to", upload)
        part_id = new_id(PART_PREFIX, self._clock.now())
        most = self._settings.max_project_bytes
        incoming = self._incoming(f"uploads/{upload_id}/{part_id}", f"part/{part_id}", most)
        stored: Stored | None = None
        async with aclosing(body.files()) as files, incoming:
            async for file in files:
                if file.name != "data" or stored is not None:
                    message = "A part is one file named data."
                    raise ApiError(ErrorCode.UNKNOWN_PARAMETER, message, param=file.name[:100])
                stored = await incoming.put(file.chunks, most=self._settings.max_part_bytes, param="data")
            if stored is None:
                raise ApiError(ErrorCode.MISSING_PARAMETER, "Missing required parameter: 'data'.", param="data")
            await incoming.keep(stored)
            part = {"id": part_id, "object_key": stored.key, "bytes": stored.bytes, "sha256": stored.sha256}
            most_bytes = upload["bytes"] + SPARE_PARTS * self._settings.max_part_bytes
            added = await self._store.add_part(upload_id, part, most_bytes=most_bytes, most_parts=MAX_PARTS)
            await failpoint("uploads.after_part")
            if added is None:
                await incoming.drop()
                raise await self._why_no_part(upload_id)
        return added

    async def _why_no_part(self, upload_id: str) -> ApiError:
        upload = await self._get(upload_id, with_parts=False)
        if upload["status"] != PENDING:
            return _wrong_state("add a part to", upload)
        message = "The parts that were sent are many more than the upload's bytes need."
        return ApiError(ErrorCode.TOO_LARGE, message, param="data")

    async def _put_together(self, upload: Doc, parts: Sequence[Doc], md5: str | None) -> Doc:
        """Stream the parts into one object; the upload as it is then, completed by this call or another."""
        file_id = upload["file_id"]
        # A name of this attempt's own: of several at once, one wins, and the others take only their own bytes away.
        incoming = self._incoming(f"files/{file_id}.{secrets.token_hex(4)}", f"file/{file_id}")
        digest = hashlib.md5(usedforsecurity=False)
        async with self._places.place(self._principal), incoming:
            chunks = self._read(parts, digest if md5 else None)
            stored = await incoming.put(chunks, most=upload["bytes"], param="part_ids")
            if md5 is not None and digest.hexdigest() != md5.lower():
                message = "The md5 of the parts in this order is another one."
                raise ApiError(ErrorCode.CHECKSUM_MISMATCH, message, param="md5")
            await incoming.keep(stored)
            completed = await self._store.end(
                upload["_id"],
                "completed",
                {
                    "object_key": stored.key,
                    "sha256": stored.sha256,
                    "part_ids": [part["id"] for part in parts],
                },
            )
            await failpoint("uploads.after_completed")
            if completed is None:
                await incoming.drop()
        return completed or await self._get(upload["_id"])

    async def _read(self, parts: Sequence[Doc], digest: Any) -> AsyncIterator[bytes]:
        for part in parts:
            async for chunk in self._objects.get(part["object_key"]):
                if digest is not None:
                    digest.update(chunk)
                yield chunk

    def _incoming(self, path: str, reference: str, most_stored: int | None = None) -> Incoming:
        """What is put together of parts takes their room: it is not counted a second time."""
        within_s = self._settings.upload_timeout_s + BODY_MARGIN_S
        return Incoming(self._db, self._objects, self._principal, path, reference, within_s, most_stored)


async def make_file(db: Database, upload: Doc, actor: Actor) -> Doc:
    """State the file of a completed upload; done twice it is the same file."""
    fact = FileUploaded(
        filename=upload["filename"],
        bytes=upload["bytes"],
        sha256=upload["sha256"],
        purpose=upload["purpose"],
        object_key=upload["object_key"],
    )
    owned = {name: upload[name] for name in ("org", "project", "end_user", "owner")}
    fields = fact.model_dump(mode="json") | owned | {"expires_at": None, "verdict": None}
    created = await create(db, fact, upload["file_id"], fields, actor=actor, expires_in_s=upload["expiry_s"])
    assert created.doc is not None
    return created.doc


def _in_order(upload: Doc, part_ids: Sequence[str]) -> list[Doc]:
    """The named parts; ApiError unless all are of this upload and make up its bytes."""
    known = {part["id"]: part for part in upload["parts"]}
    for part_id in part_ids:
        if part_id not in known:
            message = f"No such part of this upload: {part_id[:200]}"
            raise ApiError(ErrorCode.INVALID_VALUE, message, param="part_ids")
    if len(set(part_ids)) != len(part_ids):
        raise ApiError(ErrorCode.INVALID_VALUE, "A part is named twice.", param="part_ids")
    parts = [known[part_id] for part_id in part_ids]
    num_bytes = sum(part["bytes"] for part in parts)
    if num_bytes != upload["bytes"]:
        message = f"The parts have {num_bytes} bytes together; the upload was announced with {upload['bytes']}."
        raise ApiError(ErrorCode.SIZE_MISMATCH, message, param="part_ids")
    return parts


def _wrong_state(verb: str, upload: Doc) -> ApiError:
    message = f"Cannot {verb} the upload {upload['_id']}: its status is {upload['status']}."
    return ApiError(ErrorCode.INVALID_STATE, message, param="status", headers=NO_RETRY)
