"""What the file-validator reads and writes in MongoDB and the object store."""

import hashlib
from collections.abc import Sequence

import msgspec

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import DataAccepted, DataRejected, DatasetProcessed, FileValidated
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, advance
from luthier_common.kit import ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_file_validator.checks import CheckReport

ACTOR = Actor(room="file-validator")
AT_ONCE = 100


class Store:
    def __init__(self, db: Database, objects: ObjectStore) -> None:
        self.db = db
        self.objects = objects

    async def uploaded_files(self) -> list[Doc]:
        """The oldest files without a verdict."""
        return await self.db["files"].find({"phase": "uploaded"}, {"outbox": 0}).sort("_id", 1).to_list(AT_ONCE)

    async def checking_jobs(self) -> list[Doc]:
        """The oldest jobs whose files are to be read."""
        return await self.db["jobs"].find({"phase": "checking"}, {"outbox": 0}).sort("_id", 1).to_list(AT_ONCE)

    async def read_file(self, file_id: str) -> Doc | None:
        return await self.db["files"].find_one({"_id": file_id}, {"outbox": 0})

    async def read_files(self, file_ids: Sequence[str]) -> dict[str, Doc]:
        found = self.db["files"].find({"_id": {"$in": list(file_ids)}}, {"outbox": 0})
        return {file["_id"]: file async for file in found}

    async def read_job(self, job_id: str) -> Doc | None:
        return await self.db["jobs"].find_one({"_id": job_id}, {"outbox": 0})

    async def read_base(self, name: str) -> Doc | None:
        return await find_base(self.db, name)

    async def write_report(self, key: str, report: CheckReport, owner: Doc, reference: str) -> str:
        """Store a report of `owner` (a file or job) and note it in the ledger; its sha256."""
        body = msgspec.json.encode(report)
        digest = hashlib.sha256(body).hexdigest()
        # Noted first: an object that no row names is never removed.
        await ledger.record(
            self.db,
            key,
            sha256=digest,
            num_bytes=len(body),
            org=owner["org"],
            project=owner["project"],
            reference=reference,
        )
        await self.objects.put(key, body)
        await failpoint("validator.after_report")
        return digest

    async def state_verdict(self, file_id: str, fact: FileValidated) -> Advanced:
        """The verdict stands, by this call or another validator's; a file that was deleted meanwhile keeps nothing."""
        stated = await advance(self.db, Kind.FILE, file_id, fact, actor=ACTOR, op_id="FileValidated")
        await failpoint("validator.after_verdict")
        if stated.doc is None or stated.doc["phase"] == "deleted":
            await ledger.release(self.db, f"file/{file_id}")
        return stated

    async def state_of_job(self, job: Doc, fact: DatasetProcessed | DataAccepted | DataRejected) -> Advanced:
        """State a fact of the job as it was read: one that was restarted since is checked anew."""
        generation = job["generation"]
        op_id = None if isinstance(fact, DatasetProcessed) else f"{generation}/{fact.type}"
        match = {"generation": generation}
        return await advance(self.db, Kind.JOB, job["_id"], fact, actor=ACTOR, op_id=op_id, match=match)
