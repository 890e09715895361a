"""`python -m luthier_common.kit.migrate`: the one step that owns indexes, topics and document versions. Repeatable."""

import asyncio
import logging
import sys

import pymongo
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import PyMongoError

from luthier_common.contract.events import DELETED
from luthier_common.contract.lifecycle import FILE, MODEL, Lifecycle
from luthier_common.kit.errors import LuthierError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.kafka_access import kafka_access
from luthier_common.kit.logs import start_logs
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.servers import open_database
from luthier_common.kit.settings import RoomSettings
from luthier_common.kit.stream import Copies, ensure_topics

log = logging.getLogger(__name__)
DOCUMENT_VERSION = 1
LEFT_BEHIND_S = 24 * 3600
"""After so long, a lease that nobody renewed and the presence of a process that is gone are forgotten."""
DEFAULT_ORG = "org-default"
DEFAULT_PROJECT = "proj-default"
_OWNER = [("org", ASCENDING), ("project", ASCENDING)]
_NEWEST = ("_id", DESCENDING)


def _live_phases(life: Lifecycle) -> Doc:
    return {"phase": {"$in": [phase.name for phase in life.phases if not phase.final]}}


LISTED: dict[str, Doc] = {"files": _live_phases(FILE), "jobs": {DELETED: None}, "models": _live_phases(MODEL)}
"""What users see of a collection. What was deleted stays in it for ever, but not in the indexes of its lists: only a
query that asks for exactly this can use them."""


def _thing_indexes() -> list[IndexModel]:
    return [
        IndexModel([("part", ASCENDING)], name="unsent", partialFilterExpression={"unsent": True}),
        IndexModel([("part", ASCENDING)], name="pend", partialFilterExpression={"pend": True}),
        IndexModel([("phase", ASCENDING), ("_id", ASCENDING)], name="by_phase"),
        IndexModel([("updated_at", ASCENDING)], name="by_update"),
    ]


def _list_indexes(collection: str, *columns: str) -> list[IndexModel]:
    """For the newest of a project first, of one end user of it, and of those with a certain value of a column."""
    return [
        IndexModel(
            [*_OWNER, *((column, ASCENDING) for column in narrowed), _NEWEST],
            name="_".join(("listed", *narrowed)),
            partialFilterExpression=LISTED[collection],
        )
        for narrowed in ((), ("end_user",), *((column,) for column in columns))
    ]


_RELEASE_DUE = IndexModel(
    [("release_due", ASCENDING)], name="release_due", partialFilterExpression={"release_due": True}
)
INDEXES: dict[str, list[IndexModel]] = {
    "jobs": [
        *_thing_indexes(),
        *_list_indexes("jobs", "status"),
        _RELEASE_DUE,
        IndexModel(
            [*_OWNER, ("metadata.k", ASCENDING), ("metadata.v", ASCENDING), _NEWEST],
            name="by_metadata",
            partialFilterExpression={"metadata.k": {"$exists": True}},
        ),
        IndexModel(
            [*_OWNER, ("phase", ASCENDING)],
            name="to_be_counted",
            partialFilterExpression={"phase": {"$in": ["checking", "waiting"]}},
        ),
        IndexModel(
            [("spec.priority", DESCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)],
            name="queue",
            partialFilterExpression={"phase": "waiting"},
        ),
        IndexModel(
            [("queue.reason", ASCENDING), ("_id", ASCENDING)],
            name="told",
            partialFilterExpression={"phase": "waiting"},
        ),
        IndexModel([("spec.training_file", ASCENDING)], name="by_training_file"),
        IndexModel(
            [("spec.validation_file", ASCENDING)],
            name="by_validation_file",
            partialFilterExpression={"spec.validation_file": {"$type": "string"}},
        ),
        IndexModel(
            [("project", ASCENDING), ("model_name", ASCENDING)],
            name="by_model_name",
            partialFilterExpression={"model_name": {"$exists": True}},
        ),
    ],
    "files": [
        *_thing_indexes(),
        *_list_indexes("files", "filename", "sha256"),
        _RELEASE_DUE,
        IndexModel(
            [("expires_at", ASCENDING)], name="by_expiry", partialFilterExpression={"expires_at": {"$type": "date"}}
        ),
    ],
    "models": [
        *_thing_indexes(),
        *_list_indexes("models"),
        IndexModel([("project", ASCENDING), ("name", ASCENDING)], name="by_name", unique=True),
        IndexModel([("project", ASCENDING), ("aliases", ASCENDING)], name="by_alias"),
        IndexModel(
            [("released", ASCENDING)],
            name="to_release",
            partialFilterExpression={"phase": "deleted", "released": False},
        ),
    ],
    "nodes": [*_thing_indexes(), IndexModel([("role", ASCENDING), ("phase", ASCENDING)], name="by_role")],
    "events": [
        IndexModel([("kind", ASCENDING), ("thing", ASCENDING), ("seq", DESCENDING)], name="by_thing", unique=True),
        IndexModel(
            [("kind", ASCENDING), ("thing", ASCENDING), ("generation", ASCENDING)],
            name="one_terminal",
            unique=True,
            partialFilterExpression={"terminal": True},
        ),
        IndexModel(
            [("thing", ASCENDING), ("seq", DESCENDING)],
            name="checkpoints",
            partialFilterExpression={"type": "CheckpointSaved"},
        ),
    ],
    "checkpoint_permissions": [
        IndexModel([("org", ASCENDING), ("name", ASCENDING), ("project", ASCENDING)], name="by_name", unique=True)
    ],
    "objects": [
        IndexModel([("references", ASCENDING)], name="by_reference"),
        IndexModel([("touched_at", ASCENDING)], name="by_touch"),
        IndexModel([*_OWNER, ("references.0", ASCENDING), ("bytes", ASCENDING)], name="held"),
        IndexModel(
            [("intent_until", ASCENDING)],
            name="by_intent",
            partialFilterExpression={"intent_until": {"$type": "date"}},
        ),
    ],
    "uploads": [
        IndexModel([("status", ASCENDING), ("expires_at", ASCENDING)], name="by_status"),
        IndexModel([("file_id", ASCENDING)], name="by_file", unique=True),
        IndexModel([("parts.id", ASCENDING)], name="by_part"),
        IndexModel([("is_due", ASCENDING)], name="due", partialFilterExpression={"is_due": True}),
        IndexModel([("forget_at", ASCENDING)], name="ttl", expireAfterSeconds=0),
    ],
    "usage": [IndexModel([("project", ASCENDING), ("from", ASCENDING)], name="by_project")],
    "api_keys": [
        IndexModel([("digest", ASCENDING)], name="by_digest", unique=True),
        IndexModel([("org", ASCENDING), ("project", ASCENDING), ("_id", DESCENDING)], name="by_project"),
    ],
    "projects": [IndexModel([("org", ASCENDING), ("_id", DESCENDING)], name="by_org")],
    "users": [
        IndexModel([("org", ASCENDING), ("_id", DESCENDING)], name="by_org"),
        IndexModel([("org", ASCENDING), ("email", ASCENDING)], name="by_email", unique=True),
    ],
    "project_users": [IndexModel([("org", ASCENDING), ("project", ASCENDING), ("_id", DESCENDING)], name="by_project")],
    "service_accounts": [
        IndexModel([("org", ASCENDING), ("project", ASCENDING), ("_id", DESCENDING)], name="by_project")
    ],
    "leases": [IndexModel([("until", ASCENDING)], name="ttl", expireAfterSeconds=LEFT_BEHIND_S)],
    "presence": [IndexModel([("seen_at", ASCENDING)], name="ttl", expireAfterSeconds=LEFT_BEHIND_S)],
    "audit_log": [
        IndexModel([("org", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name="by_org"),
        IndexModel([("instance", ASCENDING), ("seq", DESCENDING)], name="by_chain", unique=True),
    ],
    "responses": [IndexModel([("expires_at", ASCENDING)], name="ttl", expireAfterSeconds=0)],
    "rate_windows": [IndexModel([("expires_at", ASCENDING)], name="ttl", expireAfterSeconds=0)],
    "idempotency": [IndexModel([("expires_at", ASCENDING)], name="ttl", expireAfterSeconds=0)],
}
_OF_EVERYTHING = {"by_owner", "by_end_user"}
FORMER_INDEXES: dict[str, set[str]] = {
    "jobs": {*_OF_EVERYTHING, "by_status"},
    "models": _OF_EVERYTHING,
    "nodes": _OF_EVERYTHING,
    "objects": {"by_project"},
}
"""Of versions before; others have taken their place. Those of files stay until the release after this one: the version
before this one lists files by them, beside this one while it is rolled out, and alone when it has to come back."""


async def migrate(db: Database) -> int:
    """Bring indexes and documents to this version; the installation's incarnation (it rises with a restored backup)."""
    # A limit of the client's would be one for MongoDB too, which then undoes what it has built.
    with pymongo.timeout(0):
        await _bring_indexes(db)
    await failpoint("migrate.after_indexes")
    await db["orgs"].update_one({"_id": DEFAULT_ORG}, {"$setOnInsert": {"name": "default"}}, upsert=True)
    await db["projects"].update_one(
        {"_id": DEFAULT_PROJECT}, {"$setOnInsert": {"name": "default", "org": DEFAULT_ORG}}, upsert=True
    )
    await failpoint("migrate.mid_documents")
    for collection in ("orgs", "projects"):
        undated = {"created_at": None}
        await db[collection].update_many(undated, [{"$set": {"created_at": "$$NOW"}}])
    await db["meta"].update_one(
        {"_id": "installation"},
        {"$setOnInsert": {"incarnation": 1}, "$max": {"document_version": DOCUMENT_VERSION}},
        upsert=True,
    )
    return await incarnation(db)


async def _bring_indexes(db: Database) -> None:
    for collection, indexes in INDEXES.items():
        known = (await db[collection].index_information()).keys()
        if missing := [name for index in indexes if (name := index.document["name"]) not in known]:
            log.info("building indexes of %s: %s", collection, ", ".join(missing))
        await db[collection].create_indexes(indexes)
        await failpoint("migrate.mid_indexes")
    for collection, names in FORMER_INDEXES.items():
        for name in names & (await db[collection].index_information()).keys():
            log.info("dropping the index %s of %s", name, collection)
            await db[collection].drop_index(name)


async def incarnation(db: Database) -> int:
    meta = await db["meta"].find_one({"_id": "installation"})
    return int(meta["incarnation"]) if meta else 1


async def source_of(db: Database, cluster: str) -> str:
    """What this installation's facts name as their source."""
    return f"luthier/{cluster}/{await incarnation(db)}"


async def run(settings: RoomSettings) -> None:
    access = kafka_access(settings)
    async with open_database(settings, timeout_s=30) as db:
        await migrate(db)
    await failpoint("migrate.before_topics")
    copies = Copies(settings.topic_replication, settings.topic_min_insync)
    await ensure_topics(settings.kafka_url, access, copies=copies)
    log.info("indexes, topics and documents are at version %s", DOCUMENT_VERSION)


def main() -> int:
    """The exit status: 1 when a server did not answer, or refused something; the log says which."""
    start_logs("migrate")
    try:
        asyncio.run(run(RoomSettings()))
    except LuthierError as error:
        log.error("not migrated: %s", error)  # noqa: TRY400 (the text is all that an operator needs)
        return 1
    except PyMongoError as error:
        said = (getattr(error, "details", None) or {}).get("codeName") or type(error).__name__
        log.error("not migrated: MongoDB ended it (%s); what was done stays, run it again", said)  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
