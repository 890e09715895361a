"""All reads and writes. What belongs to somebody goes through one class that cannot be made without a principal.

Every query of a `Repository` carries org and project: what is foreign is not found.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from luthier_api.domain import Page, Principal
from luthier_api.wire import files as file_wire
from luthier_api.wire import jobs as job_wire
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import Fact
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, advance, create
from luthier_common.kit import ledger
from luthier_common.kit.mongo import AFTER, Database, Doc

FILE_FIELDS = dict.fromkeys(file_wire.FIELDS, 1)
JOB_FIELDS = dict.fromkeys(job_wire.FIELDS, 1)
MODEL_FIELDS = dict.fromkeys(("name", "org", "base", "job", "blob", "phase", "created_at"), 1)
RELEASE_DUE = "release_due"
VISIBLE = ("staged", "published")


class PlatformStore:
    """What belongs to nobody: nodes, the scheduler's lease, and files whose time has come."""

    def __init__(self, db: Database, *, node_ttl_s: float) -> None:
        self._db = db
        self._node_ttl_s = node_ttl_s

    async def find_engines(self, base: str) -> dict[str, str]:
        """Live inference nodes that can answer for a base now, with their addresses."""
        fresh = {"$lt": [{"$subtract": ["$$NOW", "$renewed_at"]}, int(self._node_ttl_s * 1000)]}
        live: Doc = {"role": "inference", "phase": "live", "draining": {"$ne": True}, "bases": base}
        known: Doc = {"address": {"$ne": None}, "renewed_at": {"$ne": None}, "$expr": fresh}
        return {
            node["_id"]: node["address"] async for node in self._db["nodes"].find({**live, **known}, {"address": 1})
        }

    async def has_trainer(self) -> bool:
        live: Doc = {"role": "trainer", "phase": "live", "draining": {"$ne": True}}
        return await self._db["nodes"].find_one(live, {"_id": 1}) is not None

    async def has_scheduler(self) -> bool:
        held = {"_id": "scheduler", "owner": {"$ne": None}, "$expr": {"$gt": ["$until", "$$NOW"]}}
        return await self._db["leases"].find_one(held, {"_id": 1}) is not None

    async def find_expired_files(self, most: int) -> list[str]:
        is_over = {"$expr": {"$lt": ["$expires_at", "$$NOW"]}}
        return await self._ids({"phase": {"$ne": "deleted"}, "expires_at": {"$ne": None}, **is_over}, most)

    async def find_unreleased_files(self, most: int) -> list[str]:
        """Deleted files whose bytes a crash kept from being let go."""
        return await self._ids({"phase": "deleted", RELEASE_DUE: True}, most)

    async def _ids(self, query: Doc, most: int) -> list[str]:
        return [file["_id"] async for file in self._db["files"].find(query, {"_id": 1}).limit(most)]


async def release_bytes(db: Database, file_id: str) -> None:
    """Let go of a deleted file's bytes; the sweep repeats it where a crash came between."""
    await ledger.release(db, f"file/{file_id}")
    await db["files"].update_one({"_id": file_id, "phase": "deleted"}, {"$unset": {RELEASE_DUE: ""}})


class Repository:
    """One principal's view of the database, for one request."""

    def __init__(self, db: Database, principal: Principal, request_id: str) -> None:
        self._db = db
        self.principal = principal
        self._request_id = request_id
        self._wall: Doc = {"org": principal.org, "project": principal.project}

    @property
    def actor(self) -> Actor:
        return Actor(key_id=self.principal.key_id, request_id=self._request_id)

    async def create(self, fact: Fact, thing_id: str, fields: Mapping[str, Any]) -> Advanced:
        """A new thing of this project. A known id is a duplicate."""
        owned = {**fields, **self._wall, "owner": self.principal.owner}
        return await create(self._db, fact, thing_id, owned, actor=self.actor)

    async def advance(self, fact: Fact, thing_id: str, *, also: Mapping[str, Any] | None = None) -> Advanced:
        """State a fact of a thing of this project; another project's thing is left as it is."""
        return await advance(self._db, fact.kind, thing_id, fact, actor=self.actor, match=self._wall, also=also)

    # Files

    async def find_file(self, file_id: str) -> Doc | None:
        return await self._db["files"].find_one(self._live({"_id": file_id}), FILE_FIELDS)

    async def find_file_named(self, filename: str) -> Doc | None:
        """The newest file with exactly this name."""
        found = await self._db["files"].find(self._live({"filename": filename}), FILE_FIELDS).sort("_id", -1).to_list(1)
        return found[0] if found else None

    async def list_files(self, page: Page, purpose: str | None) -> list[Doc]:
        """One more than the page holds, if there are more."""
        query = self._live({"purpose": purpose} if purpose else {})
        return await self._page("files", query, page, FILE_FIELDS)

    # Jobs

    async def find_job(self, job_id: str) -> Doc | None:
        return await self._db["jobs"].find_one({"_id": job_id, **self._wall}, JOB_FIELDS)

    async def list_jobs(self, page: Page, metadata: Mapping[str, str] | None, *, without_metadata: bool) -> list[Doc]:
        """One more than the page holds, if there are more."""
        query: Doc = dict(self._wall)
        if without_metadata:
            query["metadata"] = None
        if metadata:
            query["$and"] = [{"metadata": {"$elemMatch": {"k": key, "v": value}}} for key, value in metadata.items()]
        return await self._page("jobs", query, page, JOB_FIELDS)

    async def count_waiting_jobs(self, most: int) -> int:
        query = {**self._wall, "phase": {"$in": ["checking", "waiting"]}}
        return await self._db["jobs"].count_documents(query, limit=most)

    async def reserve(self, name: str, job_id: str, body_sha256: str, ttl_s: float, *, replace: bool = False) -> Doc:
        """Tie a name (an Idempotency-Key, or a body) to a job id before the job exists; the tie that holds."""
        key = f"{self.principal.org}/{self.principal.project}/{name}"
        tie: Doc = {
            "job": {"$literal": job_id},
            "body_sha256": {"$literal": body_sha256},
            "expires_at": {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": int(ttl_s)}},
        }
        is_free = {"$or": [{"$lte": [{"$ifNull": ["$expires_at", None]}, None]}, {"$lt": ["$expires_at", "$$NOW"]}]}
        change = tie if replace else {field: {"$cond": [is_free, value, f"${field}"]} for field, value in tie.items()}
        held = await self._db["idempotency"].find_one_and_update(
            {"_id": key}, [{"$set": change}], upsert=True, return_document=AFTER
        )
        assert held is not None
        return held

    async def find_reserved(self, name: str) -> Doc | None:
        key = f"{self.principal.org}/{self.principal.project}/{name}"
        return await self._db["idempotency"].find_one({"_id": key, "$expr": {"$gt": ["$expires_at", "$$NOW"]}})

    # The event list of a job

    async def last_seq(self, job_id: str) -> int:
        """The last seq before the first gap: what lies behind a gap is not shown before the gap is filled."""
        mine = {"kind": str(Kind.JOB), "thing": job_id}
        newest = await self._db["events"].find(mine, {"seq": 1, "_id": 0}).sort("seq", -1).to_list(1)
        if not newest:
            return 0
        last = int(newest[0]["seq"])
        # Up to `last` only: a row that arrives meanwhile must not make up for a missing one.
        if await self._db["events"].count_documents(mine | {"seq": {"$lte": last}}) == last:
            return last
        expected = 0
        async for row in self._db["events"].find(mine, {"seq": 1, "_id": 0}).sort("seq", 1):
            if row["seq"] != expected + 1:
                break
            expected = row["seq"]
        return expected

    def event_rows(
        self, job_id: str, *, up_to_seq: int, fact: str | None = None, ascending_from: int | None = None
    ) -> AsyncIterator[Doc]:
        """Rows of a job, newest first; with `ascending_from`, oldest first from that seq on."""
        seqs: Doc = {"$lte": up_to_seq} | ({} if ascending_from is None else {"$gte": ascending_from})
        query: Doc = {"kind": str(Kind.JOB), "thing": job_id, "seq": seqs, **self._wall}
        if fact:
            query["type"] = fact
        rows = self._db["events"].find(query, {"type": 1, "thing": 1, "seq": 1, "at": 1, "body": 1})
        return rows.sort("seq", -1 if ascending_from is None else 1).batch_size(120)

    # Models

    async def find_model(self, name: str) -> Doc | None:
        """A tuned model that can be seen: published, or staged by a job that has succeeded."""
        model = await self._db["models"].find_one(self._visible({"name": name}), MODEL_FIELDS)
        return model if model and await self._succeeded([model]) else None

    async def list_models(self) -> list[Doc]:
        models = await self._db["models"].find(self._visible({}), MODEL_FIELDS).sort("_id", -1).to_list(None)
        return await self._succeeded(models)

    async def list_bases(self) -> list[Doc]:
        return await self._db["bases"].find({}).sort("_id", 1).to_list(None)

    def _visible(self, query: Doc) -> Doc:
        return {**query, **self._wall, "phase": {"$in": list(VISIBLE)}}

    async def _succeeded(self, models: Sequence[Doc]) -> list[Doc]:
        """Publishing follows success; between the two a staged model is visible by its job."""
        staged = [model["job"] for model in models if model["phase"] == "staged"]
        done: set[str] = set()
        if staged:
            query = {"_id": {"$in": staged}, **self._wall, "status": "succeeded"}
            done = {job["_id"] async for job in self._db["jobs"].find(query, {"_id": 1})}
        return [model for model in models if model["phase"] == "published" or model["job"] in done]

    def _live(self, query: Doc) -> Doc:
        return {**query, **self._wall, "phase": {"$ne": "deleted"}}

    async def _page(self, collection: str, query: Doc, page: Page, fields: Doc) -> list[Doc]:
        """Ids sort by time, so an id is a cursor even when its thing has been deleted."""
        if page.after is not None:
            query = {**query, "_id": {"$gt" if page.ascending else "$lt": page.after}}
        found = self._db[collection].find(query, fields).sort("_id", 1 if page.ascending else -1)
        return await found.limit(page.limit + 1).to_list(page.limit + 1)
