"""All reads and writes. What belongs to somebody goes through one class that cannot be made without a principal.

Every query of a `Repository` carries the wall: org and project, and for a request on behalf of an end user what is
theirs or nobody's. What is foreign is not found.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier_api.domain import Page, Principal
from luthier_api.wire import files as file_wire
from luthier_api.wire import jobs as job_wire
from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import DELETED, Fact
from luthier_common.journal.advance import Advanced, advance, create
from luthier_common.kit.migrate import LISTED
from luthier_common.kit.mongo import Database, Doc

FILE_FIELDS = dict.fromkeys(file_wire.FIELDS, 1)
JOB_FIELDS = dict.fromkeys(job_wire.FIELDS, 1)
MODEL_FIELDS = dict.fromkeys(
    ("name", "org", "base", "base_digest", "job", "blob", "weights_files", "phase", "created_at"), 1
)


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

    async def create(
        self, fact: Fact, thing_id: str, fields: Mapping[str, Any], *, expires_in_s: int | None = None
    ) -> Advanced:
        """A new thing of this project. A known id is a duplicate."""
        owned = {**fields, **self.owned, "owner": self.principal.owner}
        return await create(self.db, fact, thing_id, owned, actor=self.actor, expires_in_s=expires_in_s)

    async def advance(self, fact: Fact, thing_id: str, *, also: Mapping[str, Any] | None = None) -> Advanced:
        """State a fact of a thing of this project; another project's thing is left as it is.

        Each call is a deed of its own: a write whose answer was lost is known again, neither refused nor done twice.
        """
        op_id = f"{fact.type}/{secrets.token_hex(6)}"
        return await advance(
            self.db, fact.kind, thing_id, fact, actor=self.actor, op_id=op_id, match=self.wall, also=also
        )

    # Files

    async def find_file(self, file_id: str) -> Doc | None:
        return await self.db.finds("files", FILE_FIELDS).find(self._live({"_id": file_id}))

    async def find_file_named(self, filename: str, purpose: str) -> Doc | None:
        """The newest file with exactly this name, of those with the purpose if there is one."""
        for wanted in ({"filename": filename, "purpose": purpose}, {"filename": filename}):
            if found := await self.db["files"].find(self._live(wanted), FILE_FIELDS).sort("_id", -1).to_list(1):
                return found[0]
        return None

    async def find_deleted_file(self, file_id: str) -> str | None:
        """The id of a file that was deleted."""
        file = await self.db["files"].find_one({"_id": file_id, **self.wall, "phase": "deleted"}, {"_id": 1})
        return None if file is None else str(file["_id"])

    async def list_files(self, page: Page, wanted: Doc) -> list[Doc]:
        """One more than the page holds, if there are more."""
        query = self._live(wanted)
        return await self._page("files", query, page, FILE_FIELDS)

    # Jobs

    async def find_job(self, job_id: str, fields: Mapping[str, int] = JOB_FIELDS) -> Doc | None:
        return await self.db.finds("jobs", fields).find({"_id": job_id, **self.wall, **LISTED["jobs"]})

    async def find_made_job(self, job_id: str, fields: Mapping[str, int] = JOB_FIELDS) -> Doc | None:
        """A job that was made, deleted since or not: only for who asks what became of a request."""
        return await self.db["jobs"].find_one({"_id": job_id, **self.wall}, fields)

    async def find_deleted_job(self, job_id: str) -> Doc | None:
        """What is left of a job that was deleted."""
        return await self.db["jobs"].find_one({"_id": job_id, **self.wall, DELETED: True}, {"outbox": 0})

    async def list_jobs(self, page: Page, wanted: Doc) -> list[Doc]:
        """One more than the page holds, if there are more. `wanted` is what `JobFilter.query` has made."""
        return await self._page("jobs", {**self.wall, **LISTED["jobs"], **wanted}, page, JOB_FIELDS)

    async def count_waiting_jobs(self, most: int) -> int:
        """Of the whole project: a limit for each end user would be none, since callers make them up."""
        ours = {"org": self.principal.org, "project": self.principal.project}
        query = {**ours, "phase": {"$in": ["checking", "waiting"]}}
        return await self.db["jobs"].count_documents(query, limit=most)

    # Models

    async def find_model(self, name: str) -> Doc | None:
        """A tuned model that can be seen: published, or staged by a job that has succeeded."""
        model = await self.db["models"].find_one(self._visible({"name": name}), MODEL_FIELDS)
        return model if model and await self._succeeded([model]) else None

    async def find_model_by_alias(self, alias: str) -> Doc | None:
        """The newest model that is also called so, of those that can be seen."""
        models = self.db["models"].find(self._visible({"aliases": alias}), MODEL_FIELDS).sort("created_at", -1)
        async for model in models:
            if seen := await self._succeeded([model]):
                return seen[0]
        return None

    async def list_models(self, page: Page) -> list[Doc]:
        """Tuned models after an id; one more than the page holds, if there are more."""
        found: list[Doc] = []
        while True:
            rows = await self._page("models", self._visible({}), page, MODEL_FIELDS)
            found += await self._succeeded(rows)
            if len(rows) <= page.limit or len(found) > page.limit:
                return found[: page.limit + 1]
            page = replace(page, after=rows[-1]["_id"])

    async def find_model_id(self, name: str) -> str | None:
        """The id behind a name, of a deleted model too: a cursor outlives what it names."""
        model = await self.db["models"].find_one({"name": name, **self.wall}, {"_id": 1})
        return None if model is None else str(model["_id"])

    async def find_deleted_model(self, name: str) -> str | None:
        """The id of a model that was deleted."""
        model = await self.db["models"].find_one({"name": name, **self.wall, "phase": "deleted"}, {"_id": 1})
        return None if model is None else str(model["_id"])

    async def list_bases(self, most: int = 0, after: str | None = None) -> list[Doc]:
        """The bases by name; all of them, unless a number is given."""
        query = {} if after is None else {"_id": {"$gt": after}}
        return await self.db["bases"].find(query).sort("_id", 1).limit(most).to_list(most or None)

    def _visible(self, query: Doc) -> Doc:
        return {**query, **self.wall, **LISTED["models"]}

    async def _succeeded(self, models: Sequence[Doc]) -> list[Doc]:
        """Publishing follows success; between the two a staged model is visible by its job."""
        staged = [model["job"] for model in models if model["phase"] == "staged"]
        done: set[str] = set()
        if staged:
            query = {"_id": {"$in": staged}, **self.wall, "status": "succeeded"}
            done = {job["_id"] async for job in self.db["jobs"].find(query, {"_id": 1})}
        return [model for model in models if model["phase"] == "published" or model["job"] in done]

    def _live(self, query: Doc) -> Doc:
        return {**query, **self.wall, **LISTED["files"]}

    async def _page(self, collection: str, query: Doc, page: Page, fields: Doc) -> list[Doc]:
        """Ids sort by time, so an id is a cursor even when its thing has been deleted."""
        if page.after is not None:
            query = {**query, "_id": {"$gt" if page.ascending else "$lt": page.after}}
        found = self.db[collection].find(query, fields).sort("_id", 1 if page.ascending else -1)
        return await found.limit(page.limit + 1).to_list(page.limit + 1)
