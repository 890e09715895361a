"""The one file that knows the MongoDB driver (motor now; PyMongo's async client has the same calls)."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo import ReturnDocument, UpdateOne, errors
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from luthier_common.kit.errors import TransientError

Doc = dict[str, Any]
Database = AsyncIOMotorDatabase[Doc]
Collection = AsyncIOMotorCollection[Doc]
AFTER = ReturnDocument.AFTER
BEFORE = ReturnDocument.BEFORE

DuplicateKeyError = errors.DuplicateKeyError
BulkWriteError = errors.BulkWriteError
DRIVER_ERRORS: tuple[type[Exception], ...] = (
    errors.ConnectionFailure,
    errors.ExecutionTimeout,
    errors.WriteConcernError,
    errors.NetworkTimeout,
)
"""Errors after which nothing is known: the write may have happened."""
OUTAGES: tuple[type[Exception], ...] = (TransientError, *DRIVER_ERRORS)
"""What a loop waits out: a server of ours did not answer."""


@asynccontextmanager
async def open_mongo(url: str, database: str, *, timeout_s: float = 5.0) -> AsyncIterator[Database]:
    """A database handle with majority, journaled writes and majority reads.

    Raises TransientError when the server does not answer or is not a replica set: a standalone server loses
    acknowledged writes.
    """
    client: AsyncIOMotorClient[Doc] = AsyncIOMotorClient(
        url, tz_aware=True, timeoutMS=int(timeout_s * 1000), maxPoolSize=64, appname="luthier"
    )
    try:
        try:
            hello = await client.admin.command("hello")
        except DRIVER_ERRORS as error:
            raise TransientError("MongoDB does not answer") from error
        if "setName" not in hello:
            raise TransientError("MongoDB must run as a replica set, even with one member")
        yield client.get_database(
            database, write_concern=WriteConcern(w="majority", j=True), read_concern=ReadConcern("majority")
        )
    finally:
        client.close()


async def update_each(collection: Collection, updates: Mapping[str, list[Doc]]) -> None:
    """Update many documents, by id, each by its own pipeline, in one round trip. Those that are gone are passed over.

    Raises a driver error, or TransientError when the server refused some: those that it took stay done.
    """
    if not updates:
        return
    try:
        await collection.bulk_write([UpdateOne({"_id": key}, change) for key, change in updates.items()], ordered=False)
    except BulkWriteError as error:
        raise TransientError("some of many updates could not be written") from error


async def ping(db: Database, *, timeout_s: float = 1.0) -> None:
    """Raises TimeoutError or a driver error when the server does not answer within `timeout_s`."""
    await asyncio.wait_for(db.command("ping"), timeout_s)
