"""The one file that knows the MongoDB driver (motor now; PyMongo's async client has the same calls)."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

MAX_CONNECTIONS = 64
# A thread for each connection: motor's own number is five a core, and on few cores everything would wait for those that
# wait for a change or for the journal. It is read when motor is imported.
os.environ.setdefault("MOTOR_MAX_WORKERS", str(MAX_CONNECTIONS))

import bson  # noqa: E402
from bson.codec_options import CodecOptions  # noqa: E402
from bson.errors import BSONError  # noqa: E402
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase  # noqa: E402
from pymongo import ReturnDocument, UpdateOne, errors, timeout  # noqa: E402
from pymongo.read_concern import ReadConcern  # noqa: E402
from pymongo.write_concern import WriteConcern  # noqa: E402

from luthier_common.kit.errors import SettingError, TransientError  # noqa: E402
from luthier_common.kit.failpoints import ReplyLostError  # noqa: E402
from luthier_common.kit.together import Together  # noqa: E402

Doc = dict[str, Any]
Collection = AsyncIOMotorCollection[Doc]


class Finds:
    """Finds documents by id: those that are asked for at the same time, in one query.

    A call costs the driver's threads and the interpreter's lock far more than a further document does.
    """

    def __init__(self, collection: Collection, fields: Mapping[str, int]) -> None:
        self._collection = collection
        self._fields = dict(fields)
        self._together = Together[tuple[bytes, Doc], Doc | None](self._find_all)

    async def find(self, query: Doc) -> Doc | None:
        """As `find_one`, where `query` names one `_id`. What no query can hold is refused to its asker alone."""
        return await self._together.add((bson.encode(query), query))

    async def _find_all(self, asked: Sequence[tuple[bytes, Doc]]) -> list[Doc | None]:
        """Of one id only one query at a time: no row may be shown to who asked for the same id in another way."""
        found: dict[bytes, Doc] = {}
        left = dict(asked)
        while left:
            by_id = {query["_id"]: key for key, query in left.items()}
            queries = [left.pop(key) for key in by_id.values()]
            for doc in await self._find(queries):
                found[by_id[doc["_id"]]] = doc
        return [dict(found[key]) if key in found else None for key, _ in asked]

    async def _find(self, queries: Sequence[Doc]) -> list[Doc]:
        if len(queries) == 1:
            doc = await self._collection.find_one(queries[0], self._fields)
            return [] if doc is None else [doc]
        query = {"_id": {"$in": [query["_id"] for query in queries]}, "$or": queries}
        return await self._collection.find(query, self._fields).hint("_id_").to_list(None)


class Database(AsyncIOMotorDatabase[Doc]):
    """A handle that keeps what it has made.

    The driver makes a collection anew each time it is named; that took a twelfth of the API's time under load.
    """

    def __init__(self, client: AsyncIOMotorClient[Doc], name: str, **options: Any) -> None:
        super().__init__(client, name, **options)
        self._kept: dict[str, Collection] = {}
        self._finds: dict[tuple[str, ...], Finds] = {}

    def __getitem__(self, name: str) -> Collection:
        if name not in self._kept:
            self._kept[name] = super().__getitem__(name)
        return self._kept[name]

    def finds(self, name: str, fields: Mapping[str, int]) -> Finds:
        """What finds these fields of a collection's documents for all who share this handle."""
        key = (name, *fields)
        if key not in self._finds:
            self._finds[key] = Finds(self[name], fields)
        return self._finds[key]


AFTER = ReturnDocument.AFTER
BEFORE = ReturnDocument.BEFORE

DuplicateKeyError = errors.DuplicateKeyError
DUPLICATE = 11000
"""The same fault, as one of many writes has it."""
BulkWriteError = errors.BulkWriteError
DRIVER_ERRORS: tuple[type[Exception], ...] = (
    errors.ConnectionFailure,
    errors.CursorNotFound,
    errors.ExecutionTimeout,
    errors.WriteConcernError,
    errors.NetworkTimeout,
    ReplyLostError,
)
"""Errors after which nothing is known: the write may have happened."""
OUTAGES: tuple[type[Exception], ...] = (TransientError, *DRIVER_ERRORS)
"""What a loop waits out: a server of ours did not answer."""
_NOT_YET = frozenset({6, 7, 24, 89, 112, 134, 246, 262, 9001})
"""Codes of refusals that MongoDB gives while it starts, steps down or is under a lock: the same call may succeed."""


_AUTHENTICATION_FAILED = 18
GOODBYE_S = 1.0


def is_outage(error: Exception) -> bool:
    """Whether a loop waits it out: one of `OUTAGES`, or the database is there and cannot answer yet."""
    return isinstance(error, OUTAGES) or (isinstance(error, errors.OperationFailure) and error.code in _NOT_YET)


def hasty(collection: Collection) -> Collection:
    """For notes whose loss is harmless: a write is answered before the journal and other members have it."""
    return collection.with_options(write_concern=WriteConcern(w=1, j=False))


@asynccontextmanager
async def open_mongo(
    url: str, database: str, *, ca_file: Path | None = None, timeout_s: float = 5.0
) -> AsyncIterator[Database]:
    """A database handle with majority, journaled writes and majority reads; over TLS when there is a `ca_file`.

    Raises TransientError when the server does not answer or is not a replica set: a standalone server loses
    acknowledged writes. SettingError when it refuses the user, or the file holds no certificates.
    """
    client = _client(url, ca_file, timeout_s)
    try:
        try:
            hello = await client.admin.command("hello")
        except DRIVER_ERRORS as error:
            raise TransientError(f"MongoDB does not answer{_why(error)}") from error
        except errors.OperationFailure as error:
            if error.code != _AUTHENTICATION_FAILED:
                raise
            raise SettingError("MongoDB refuses the user or the password in LUTHIER_MONGO_URL") from error
        if "setName" not in hello:
            raise TransientError("MongoDB must run as a replica set, even with one member")
        yield Database(
            client, database, write_concern=WriteConcern(w="majority", j=True), read_concern=ReadConcern("majority")
        )
    finally:
        # It says goodbye to the server, in this thread, and would wait for a hung one for ever.
        with timeout(GOODBYE_S):
            client.close()


def _client(url: str, ca_file: Path | None, timeout_s: float) -> AsyncIOMotorClient[Doc]:
    tls: dict[str, Any] = {"tls": True, "tlsCAFile": str(ca_file)} if ca_file else {}
    try:
        return AsyncIOMotorClient(
            url, tz_aware=True, timeoutMS=int(timeout_s * 1000), maxPoolSize=MAX_CONNECTIONS, appname="luthier", **tls
        )
    except (OSError, errors.ConfigurationError) as error:
        if ca_file is None:
            raise
        raise SettingError(f"LUTHIER_MONGO_CA_FILE cannot be used: {type(error).__name__}") from error


def _why(error: Exception) -> str:
    """The driver tells only in its text what kept it from a server; of that text nothing else is passed on."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ": LUTHIER_MONGO_CA_FILE does not vouch for its certificate, or that is for another name"
    if "SSL" in text:
        return ": no TLS with it, see LUTHIER_MONGO_URL (tls, tlsCertificateKeyFile) and LUTHIER_MONGO_CA_FILE"
    return ""


def read_back(doc: Doc) -> Doc:
    """What would be read of this document once it is written. Raises ValueError where it could not be either."""
    try:
        return bson.decode(bson.encode(doc), CodecOptions(document_class=dict, tz_aware=True))
    except (BSONError, OverflowError) as error:
        raise ValueError("BSON cannot hold it") from error


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


async def upsert_each(collection: Collection, updates: Mapping[str, Doc]) -> None:
    """Update many documents, by id, in one round trip, and make those that are not there.

    Raises a driver error; BulkWriteError names by their index those that the server refused: the others are done.
    """
    operations = [UpdateOne({"_id": key}, change, upsert=True) for key, change in updates.items()]
    await collection.bulk_write(operations, ordered=False)


async def make_missing(collection: Collection, docs: Sequence[Doc]) -> list[bool]:
    """Make those documents, of expressions, whose ids are not there yet, in one round trip; which of them were made.

    Raises a driver error, after which that is not known.
    """
    operations = [UpdateOne({"_id": doc["_id"]}, _unless_there(doc), upsert=True) for doc in docs]
    try:
        made = (await collection.bulk_write(operations, ordered=False)).upserted_ids or {}
    except BulkWriteError as error:  # of two that make the same one at the same time, the server may refuse one
        if any(fault["code"] != DUPLICATE for fault in error.details["writeErrors"]):
            raise TransientError("some of many documents could not be made") from error
        made = {row["index"]: row["_id"] for row in error.details["upserted"]}
    return [number in made for number in range(len(docs))]


def _unless_there(doc: Doc) -> list[Doc]:
    """The update that makes a document and changes none: before it was made, it has nothing but its id."""
    is_new: Doc = {"$eq": [{"$size": {"$objectToArray": "$$ROOT"}}, 1]}
    return [{"$replaceWith": {"$cond": [is_new, doc, "$$ROOT"]}}]


async def update_matching(collection: Collection, changes: Sequence[tuple[Doc, Doc | list[Doc]]]) -> int:
    """Make many updates, each with its own filter, in one round trip; how many of them found their document.

    Raises as `update_each` does.
    """
    try:
        done = await collection.bulk_write([UpdateOne(query, change) for query, change in changes], ordered=False)
    except BulkWriteError as error:
        raise TransientError("some of many updates could not be written") from error
    return done.matched_count


async def ping(db: Database, *, timeout_s: float = 1.0) -> None:
    """Raises TimeoutError or a driver error when the server does not answer within `timeout_s`."""
    await asyncio.wait_for(db.command("ping"), timeout_s)
