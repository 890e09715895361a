"""All reads and writes. What belongs to somebody goes through one class that cannot be made without a principal.

Every query of a `Repository` carries the wall: org and project, and for a request on behalf of an end user what is
theirs or nobody's. What is foreign is not found.
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
from luthier_common.kit.mongo import AFTER, Database, Doc

FILE_FIELDS = dict.fromkeys(file_wire.FIELDS, 1)
JOB_FIELDS = dict.fromkeys(job_wire.FIELDS, 1)
MODEL_FIELDS = dict.fromkeys(("name", "org", "base", "job", "blob", "phase", "created_at"), 1)
VISIBLE = ("staged", "published")


class Repository:
    """One principal's view of the database, for one request."""

    def __init__(self, db: Database, principal: Principal, request_id: str) -> None:
        self.db = db
        self.principal = principal
        self._request_id = request_id
        self.owned: Doc = {"org": principal.org, "project": principal.project, "end_user": principal.end_user}
        self.wall: Doc = {"org": principal.org, "project": principal.project}
        if principal.end_user is not None:
            self.wall["end_user"] = {"$in": [None, principal.end_user]}

    @property
    def actor(self) -> Actor:
        who = self.principal
        return Actor(key_id=who.key_id, end_user=who.end_user, request_id=self._request_id)

    async def create(self, fact: Fact, thing_id: str, fields: Mapping[str, Any]) -> Advanced:
        """A new thing of this project. A known id is a duplicate."""
        owned = {**fields, **self.owned, "owner": self.principal.owner}
        return await create(self.db, fact, thing_id, owned, actor=self.actor)

    async def advance(self, fact: Fact, thing_id: str, *, also: Mapping[str, Any] | None = None) -> Advanced:
        """State a fact of a thing of this project; another project's thing is left as it is."""
        return await advance(self.db, fact.kind, thing_id, fact, actor=self.actor, match=self.wall, also=also)

    # Files

    async def find_file(self, file_id: str) -> Doc | None:
        return await self.db["files"].find_one(self._live({"_id": file_id}), FILE_FIELDS)

    async def find_file_named(self, filename: str) -> Doc | None:
        """The newest file with exactly this name."""
        found = await self.db["files"].find(self._live({"filename": filename}), FILE_FIELDS).sort("_id", -1).to_list(1)
        return found[0] if found else None

    async def list_files(self, page: Page, purpose: str | None) -> list[Doc]:
        """One more than the page holds, if there are more."""
        query = self._live({"purpose": purpose} if purpose else {})
        return await self._page("files", query, page, FILE_FIELDS)

    # Jobs

    async def find_job(self, job_id: str) -> Doc | None:
        return await self.db["jobs"].find_one({"_id": job_id, **self.wall}, JOB_FIELDS)

    async def list_jobs(self, page: Page, metadata: Mapping[str, str] | None, *, without_metadata: bool) -> list[Doc]:
        """One more than the page holds, if there are more."""
        query: Doc = dict(self.wall)
        if without_metadata:
            query["metadata"] = None
        if metadata:
            query["$and"] = [{"metadata": {"$elemMatch": {"k": key, "v": value}}} for key, value in metadata.items()]
        return await self._page("jobs", query, page, JOB_FIELDS)

    async def count_waiting_jobs(self, most: int) -> int:
        query = {**self.wall, "phase": {"$in": ["checking", "waiting"]}}
        return await self.db["jobs"].count_documents(query, limit=most)

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
        held = await self.db["idempotency"].find_one_and_update(
            {"_id": key}, [{"$set": change}], upsert=True, return_document=AFTER
        )
        assert held is not None
        return held

    async def find_reserved(self, name: str) -> Doc | None:
        key = f"{self.principal.org}/{self.principal.project}/{name}"
        return await self.db["idempotency"].find_one({"_id": key, "$expr": {"$gt": ["$expires_at", "$$NOW"]}})

    # The event list of a job

    async def last_seq(self, job_id: str) -> int:
        """The last seq before the first gap: what lies behind a gap is not shown before the gap is filled."""
        mine = {"kind": str(Kind.JOB), "thing": job_id}
        newest = await self.db["events"].find(mine, {"seq": 1, "_id": 0}).sort("seq", -1).to_list(1)
        if not newest:
            return 0
        last = int(newest[0]["seq"])
        # Up to `last` only: a row that arrives meanwhile must not make up for a missing one.
        if await self.db["events"].count_documents(mine | {"seq": {"$lte": last}}) == last:
            return last
        expected = 0
        async for row in self.db["events"].find(mine, {"seq": 1, "_id": 0}).sort("seq", 1):
            if row["seq"] != expected + 1:
                break
            expected = row["seq"]
        return expected

    def event_rows(
        self, job_id: str, *, up_to_seq: int, fact: str | None = None, ascending_from: int | None = None
    ) -> AsyncIterator[Doc]:
        """Rows of a job that the caller has found, newest first; with `ascending_from`, oldest first from there."""
        seqs: Doc = {"$lte": up_to_seq} | ({} if ascending_from is None else {"$gte": ascending_from})
        wall = {"org": self.principal.org, "project": self.principal.project}
        query: Doc = {"kind": str(Kind.JOB), "thing": job_id, "seq": seqs, **wall}
        if fact:
            query["type"] = fact
        rows = self.db["events"].find(query, {"type": 1, "thing": 1, "seq": 1, "at": 1, "body": 1})
        return rows.sort("seq", -1 if ascending_from is None else 1).batch_size(120)

    # Models

    async def find_model(self, name: str) -> Doc | None:
        """A tuned model that can be seen: published, or staged by a job that has succeeded."""
        model = await self.db["models"].find_one(self._visible({"name": name}), MODEL_FIELDS)
        return model if model and await self._succeeded([model]) else None

    async def list_models(self) -> list[Doc]:
        models = await self.db["models"].find(self._visible({}), MODEL_FIELDS).sort("_id", -1).to_list(None)
        return await self._succeeded(models)

    async def list_bases(self) -> list[Doc]:
        return await self.db["bases"].find({}).sort("_id", 1).to_list(None)

    def _visible(self, query: Doc) -> Doc:
        return {**query, **self.wall, "phase": {"$in": list(VISIBLE)}}

    async def _succeeded(self, models: Sequence[Doc]) -> list[Doc]:
        """Publishing follows success; between the two a staged model is visible by its job."""
        staged = [model["job"] for model in models if model["phase"] == "staged"]
        done: set[str] = set()
        if staged:
            query = {"_id": {"$in": staged}, **self.wall, "status": "succeeded"}
            done = {job["_id"] async for job in self.db["jobs"].find(query, {"_id": 1})}
        return [model for model in models if model["phase"] == "published" or model["job"] in done]

    def _live(self, query: Doc) -> Doc:
        return {**query, **self.wall, "phase": {"$ne": "deleted"}}

    async def _page(self, collection: str, query: Doc, page: Page, fields: Doc) -> list[Doc]:
        """Ids sort by time, so an id is a cursor even when its thing has been deleted."""
        if page.after is not None:
            query = {**query, "_id": {"$gt" if page.ascending else "$lt": page.after}}
        found = self.db[collection].find(query, fields).sort("_id", 1 if page.ascending else -1)
        return await found.limit(page.limit + 1).to_list(page.limit + 1)
