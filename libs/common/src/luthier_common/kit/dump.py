"""Collections as files: BSON documents one after another, as `bsondump` and `mongorestore` read them too.

Streams in both directions; a document is never decoded on its way, so that types come back as they were.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bson import decode_file_iter
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClientSession
from pydantic import BaseModel, ConfigDict

from luthier_common.kit.mongo import Database, Doc

BATCH = 200
BATCH_BYTES = 8 * 1024 * 1024
_LENGTH_BYTES = 4
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_AWARE: CodecOptions[Doc] = CodecOptions(tz_aware=True)


class Dumped(BaseModel):
    """What a file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    bytes: int
    sha256: str


@asynccontextmanager
async def one_moment(db: Database) -> AsyncIterator[AsyncIOMotorClientSession]:
    """Everything read with this session is as it was at one instant; the server keeps it for some minutes."""
    async with await db.client.start_session(snapshot=True) as session:
        yield session


async def dump_collection(db: Database, name: str, path: Path, session: AsyncIOMotorClientSession) -> Dumped:
    """Write a whole collection into a new file."""
    digest, count, num_bytes = hashlib.sha256(), 0, 0
    cursor = db[name].with_options(codec_options=_RAW).find({}, session=session, batch_size=BATCH)
    with path.open("xb") as target:
        async for document in cursor:
            target.write(document.raw)
            digest.update(document.raw)
            count, num_bytes = count + 1, num_bytes + len(document.raw)
    return Dumped(count=count, bytes=num_bytes, sha256=digest.hexdigest())


async def load_collection(db: Database, name: str, path: Path) -> int:
    """Insert the documents of a file; how many. A driver error when one of them is already there."""
    collection = db[name].with_options(codec_options=_RAW)
    count = 0
    with path.open("rb") as source:
        for batch in _batches(source):
            await collection.insert_many(batch, ordered=False)
            count += len(batch)
    return count


def measure(path: Path) -> Dumped:
    """What a file really holds; ValueError when it does not end with a whole document."""
    digest, count, num_bytes = hashlib.sha256(), 0, 0
    with path.open("rb") as source:
        for raw in _raw_documents(source):
            digest.update(raw)
            count, num_bytes = count + 1, num_bytes + len(raw)
    return Dumped(count=count, bytes=num_bytes, sha256=digest.hexdigest())


def read_documents(path: Path) -> Iterator[Mapping[str, Any]]:
    """The documents of a file, decoded."""
    with path.open("rb") as source:
        yield from decode_file_iter(source, _AWARE)


def _batches(source: BinaryIO) -> Iterator[list[RawBSONDocument]]:
    batch: list[RawBSONDocument] = []
    num_bytes = 0
    for raw in _raw_documents(source):
        if batch and (len(batch) >= BATCH or num_bytes + len(raw) > BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(RawBSONDocument(raw))
        num_bytes += len(raw)
    if batch:
        yield batch


def _raw_documents(source: BinaryIO) -> Iterator[bytes]:
    while head := source.read(_LENGTH_BYTES):
        length = int.from_bytes(head, "little")
        body = source.read(max(0, length - _LENGTH_BYTES))
        if len(head) < _LENGTH_BYTES or len(head) + len(body) != length:
            raise ValueError("the file ends within a document")
        yield head + body
