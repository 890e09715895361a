"""What the file-validator reads and writes in MongoDB and the object store."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from luthier_common.contract.envelope import Actor
from luthier_common.contract.events import DataAccepted, DataRejected, DatasetProcessed, FileValidated
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, advance
from luthier_common.kit import leases, ledger
from luthier_common.kit.bases import find_base
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import AFTER, Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_file_validator.checks import CheckReport

ACTOR = Actor(room="file-validator")
PAGE = 100
RESTS_AFTER_FAULT_S = (60.0, 600.0)
"""How long a check rests after the machine's first and second fault; the third is a verdict."""


class Store:
    def __init__(self, db: Database, objects: ObjectStore) -> None:
        self.db = db
        self.objects = objects

    def uploaded_files(self) -> AsyncIterator[list[Doc]]:
        """What a look needs of every file without a verdict, oldest first, in pages."""
        return self._pages("files", "uploaded", ("project", "purpose", "bytes"))

    def checking_jobs(self) -> AsyncIterator[list[Doc]]:
        """What a look needs of every job whose files are to be read, oldest first, in pages."""
        return self._pages("jobs", "checking", ("project", "spec", "generation", "trace"))

    async def held_leases(self, prefix: str) -> set[str]:
        """Names of leases under which somebody works now, and of those that rest."""
        held: Doc = {"_id": {"$regex": f"^{prefix}"}, "$expr": {"$gt": ["$until", "$$NOW"]}}
        return {lease["_id"] async for lease in self.db[leases.COLLECTION].find(held, {"_id": 1})}

    async def read_file(self, file_id: str) -> Doc | None:
        return await self.db["files"].find_one({"_id": file_id}, {"outbox": 0})

    async def read_files(self, file_ids: Iterable[str]) -> dict[str, Doc]:
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
        elif fact.report_key is not None:
            # A sweeper of the version before this one would take the report for nobody's.
            await ledger.settle(self.db, fact.report_key, by=stated.doc["updated_at"])
        return stated

    async def count_fault(self, lease_name: str) -> bool:
        """Note a fault of the machine under the held lease. True: there were too many, and the count begins anew.

        The lease document counts, for it is named after the work, outlives a restart and is seen by every instance.
        Until the rest is over the lease is free for nobody.
        """
        counted: Doc = {"$inc": {"num_faults": 1}}
        lease = await self.db[leases.COLLECTION].find_one_and_update(
            {"_id": lease_name}, counted, upsert=True, return_document=AFTER
        )
        num_faults: int = lease["num_faults"] if lease else 1
        if num_faults > len(RESTS_AFTER_FAULT_S):
            await self.forget_faults(lease_name)
            return True
        rest_ms = int(RESTS_AFTER_FAULT_S[num_faults - 1] * 1000)
        until: Doc = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": rest_ms}}
        await self.db[leases.COLLECTION].update_one({"_id": lease_name}, [{"$set": {"owner": None, "until": until}}])
        return False

    async def forget_faults(self, lease_name: str) -> None:
        await self.db[leases.COLLECTION].update_one({"_id": lease_name}, {"$unset": {"num_faults": ""}})

    async def state_of_job(self, job: Doc, fact: DatasetProcessed | DataAccepted | DataRejected) -> Advanced:
        """State a fact of the job as it was read: one that was restarted since is checked anew."""
        generation = job["generation"]
        op_id = None if isinstance(fact, DatasetProcessed) else f"{generation}/{fact.type}"
        match = {"generation": generation}
        return await advance(self.db, Kind.JOB, job["_id"], fact, actor=ACTOR, op_id=op_id, match=match)

    async def _pages(self, kind: str, phase: str, fields: Sequence[str]) -> AsyncIterator[list[Doc]]:
        cursor = self.db[kind].find({"phase": phase}, dict.fromkeys(fields, 1)).sort("_id", 1)
        while page := await cursor.to_list(PAGE):
            yield page
