"""What the registry reads and writes in MongoDB."""

from collections.abc import Mapping
from typing import Any

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import Fact, FileDeleted, FileGenerated, ModelDeleted, ModelPublished, ModelStaged
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, advance, create
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_registry.domain import RESULT_PURPOSE

ACTOR = Actor(room="registry")
_NO_OUTBOX = {"outbox": 0}
_VERSION = ("digest", "key", "files", "context_length", "revision")
"""What differs from one bundle of a base to the next."""


class Store:
    def __init__(self, db: Database) -> None:
        self.db = db

    async def list_jobs(self, phase: str) -> list[Doc]:
        return await self.db["jobs"].find({"phase": phase}, _NO_OUTBOX).sort("_id", 1).to_list(None)

    async def read_job(self, job_id: str) -> Doc | None:
        return await self.db["jobs"].find_one({"_id": job_id}, _NO_OUTBOX)

    async def read_model(self, model_id: str) -> Doc | None:
        return await self.db["models"].find_one({"_id": model_id}, _NO_OUTBOX)

    async def list_models(self, phase: str) -> list[Doc]:
        return await self.db["models"].find({"phase": phase}, _NO_OUTBOX).sort("_id", 1).to_list(None)

    async def read_base(self, name: str) -> Doc | None:
        return await find_base(self.db, name)

    async def names_of_other_bases(self, name: str) -> set[str]:
        """Names and aliases of all entries but this one."""
        others = self.db["bases"].find({"_id": {"$ne": name}}, {"aliases": 1})
        return {called async for other in others for called in (other["_id"], *other.get("aliases", ()))}

    async def free_name(self, name: str) -> bool:
        """A name of its own is nobody's alias any more; whether it was one."""
        pulled = await self.db["bases"].update_many({"aliases": name}, {"$pull": {"aliases": name}})
        return pulled.modified_count > 0

    async def write_base(self, base: Doc) -> None:
        """Put a base into the catalogue; what stood there under its name is kept, for what is pinned to it."""
        fields = {name: {"$literal": value} for name, value in base.items() if name != "_id"}
        times = {"updated_at": "$$NOW", "created_at": {"$ifNull": ["$created_at", "$$NOW"]}}
        entries = {"$concatArrays": [{"$ifNull": ["$former", []]}, [{name: f"${name}" for name in _VERSION}]]}
        is_other = {"$and": [{"$gt": ["$$entry.digest", None]}, {"$ne": ["$$entry.digest", base["digest"]]}]}
        former = {"$filter": {"input": entries, "as": "entry", "cond": is_other}}
        await self.db["bases"].update_one(
            {"_id": base["_id"]}, [{"$set": {**fields, **times, "former": former}}], upsert=True
        )

    async def org_name(self, org: str) -> str:
        found = await self.db["orgs"].find_one({"_id": org}, {"name": 1})
        return str(found["name"]) if found and found.get("name") else org

    async def served_names(self) -> set[str]:
        """Names of the bases that some live engine serves, also where one rests now: that engine knows how long."""
        served: set[str] = set()
        query = {"role": "inference", "phase": "live", "draining": {"$ne": True}}
        async for node in self.db["nodes"].find(query, {"bases": 1, "resting": 1}):
            served.update(node.get("bases") or [], node.get("resting") or [])
        return served

    async def state_of_job(self, job: Doc, fact: Fact) -> Advanced:
        """State a fact of the job as it was read: one that was placed again since is left alone."""
        op_id = f"{job['generation']}/{job['attempt']}/{fact.type}"
        return await advance(
            self.db, Kind.JOB, job["_id"], fact, actor=ACTOR, attempt=job["attempt"], op_id=op_id,
            match={"generation": job["generation"]},
        )  # fmt: skip

    async def create_model(self, model_id: str, fact: ModelStaged, fields: Mapping[str, Any]) -> Advanced:
        return await create(self.db, fact, model_id, fields, actor=ACTOR)

    async def create_file(self, file_id: str, fact: FileGenerated, fields: Mapping[str, Any]) -> Advanced:
        stored = fact.model_dump(mode="json", exclude={"job_id"}) | {"job": fact.job_id, "expires_at": None}
        return await create(self.db, fact, file_id, {**stored, **fields}, actor=ACTOR)

    async def make_weights_files(self, model: Doc) -> tuple[str, ...]:
        """The model's weights as files of its job; their bytes are the model's own."""
        owned = {name: model[name] for name in ("org", "project", "owner")} | {"end_user": model.get("end_user")}
        weights = model.get("weights_files") or ()
        for file in weights:
            await ledger.refer(self.db, model["blob"]["key"], f"file/{file['id']}", is_made_later=True)
            fact = FileGenerated(
                filename=f"{model['_id']}/{file['name']}", bytes=file["bytes"], sha256=file["sha256"],
                purpose=RESULT_PURPOSE, object_key=model["blob"]["key"] + file["name"], job_id=model["job"],
            )  # fmt: skip
            await self.create_file(file["id"], fact, owned)
            await failpoint("registry.mid_weights")
        return tuple(file["id"] for file in weights)

    async def drop_weights_files(self, model: Doc) -> None:
        for file in model.get("weights_files") or ():
            await advance(self.db, Kind.FILE, file["id"], FileDeleted(), actor=ACTOR)
            await ledger.release(self.db, f"file/{file['id']}")

    async def publish_model(self, model: Doc) -> Advanced:
        fact = ModelPublished(name=model["name"], job_id=model["job"])
        return await advance(self.db, Kind.MODEL, model["_id"], fact, actor=ACTOR, op_id=fact.type)

    async def delete_model(self, model_id: str) -> Advanced:
        fact = ModelDeleted()
        return await advance(
            self.db, Kind.MODEL, model_id, fact, actor=ACTOR, op_id=fact.type, match={"phase": "staged"}
        )

    async def release_deleted_models(self) -> None:
        """Let go of the objects and weights files of models that were deleted, by whomever."""
        query = {"phase": "deleted", "released": False}  # as the index of those that are left says it
        async for model in self.db["models"].find(query, {"weights_files": 1}):
            await self.drop_weights_files(model)
            await ledger.release(self.db, f"model/{model['_id']}")
            await failpoint("registry.mid_release")
            await self.db["models"].update_one({"_id": model["_id"]}, {"$set": {"released": True}})

    async def release_abandoned(self) -> None:
        """Let go of objects that were being made for jobs which have left `trained` since."""
        references: set[str] = set()
        async for row in self.db[ledger.COLLECTION].find(
            {"references": {"$regex": "^registering/"}}, {"references": 1}
        ):
            references.update(text for text in row["references"] if text.startswith("registering/"))
        for reference in sorted(references):
            job = await self.read_job(reference.removeprefix("registering/"))
            if job is None or job["phase"] != "trained":
                await ledger.release(self.db, reference)

    async def record(self, owned: Doc, key: str, reference: str, *, sha256: str, num_bytes: int) -> None:
        """Note an object in the ledger with who refers to it."""
        await ledger.record(
            self.db, key, sha256=sha256, num_bytes=num_bytes, org=owned["org"], project=owned["project"],
            reference=reference,
        )  # fmt: skip

    async def refer(self, key: str, reference: str) -> None:
        """Refer to a noted object by a thing that is made next; TransientError when the object is going."""
        if not await ledger.refer(self.db, key, reference, is_made_later=True):
            raise TransientError(f"the object {key} is being removed")

    async def release(self, reference: str) -> None:
        await ledger.release(self.db, reference)
