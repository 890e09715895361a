"""Stories of many kinds that users, operators, time and bad luck write, told again and again while faults happen.

A story may be cut short by a fault: what it was told by an error, and what comes too late, is passed over. What the
system must never say (an internal error, an unknown one) is kept in `broken`.
"""

import asyncio
import json
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai

from builders.bases import write_chat_file
from builders.invariants import DEED
from builders.workshop import FINAL, TINY, Workshop
from luthier_common.kit.mongo import Doc
from luthier_stack.stack import Stack

Story = Callable[[], Coroutine[Any, Any, None]]
IN_TIME_S = 25.0
HELD = ("placed", "training")
FINISHING = ("trained", "staged", "verified")
BAD_ROWS = b'{"messages": [{"role": "user"}]}\n' * 12
EMPTY = b""


class TooLateError(Exception):
    """What a story waited for has not come while faults happened."""


class Stories:
    """`told` counts the endings of each story; `acknowledged` are the jobs that a client was told of."""

    def __init__(self, stack: Stack, shop: Workshop, folder: Path, migrating: dict[str, str]) -> None:
        self._stack = stack
        self._shop = shop
        self._sdk = shop.client
        self._db = shop.db
        self._folder = folder
        self._migrating = migrating
        self.acknowledged: set[str] = set()
        self.broken: list[str] = []
        self.told: Counter[str] = Counter()
        self.cut_short: Counter[str] = Counter()
        self.models: list[str] = []
        self.bad_files: set[str] = set()
        """Jobs that train on these are meant to fail."""
        self._promised: list[tuple[str, Callable[[], Awaitable[bool]]]] = []

    async def tell(self, story: Story) -> None:
        """One story, to its end or to the first fault that it cannot go round."""
        name = story.__name__
        try:
            async with asyncio.timeout(4 * IN_TIME_S):
                await story()
            self.told[name] += 1
        except openai.APIStatusError as error:
            code = (error.body or {}).get("code") if isinstance(error.body, dict) else None
            self.cut_short[f"{name}: {code}"] += 1
            if error.status_code in (500, 502) or code is None:
                self.broken.append(f"{name}: {error.status_code} {error.body}")
        except (openai.APIConnectionError, TooLateError, TimeoutError) as error:
            self.cut_short[f"{name}: {type(error).__name__}"] += 1

    async def broken_promises(self) -> list[str]:
        """Deeds that were acknowledged and are not so in the end."""
        return [what for what, is_so in self._promised if not await is_so()]

    # Jobs

    async def a_job_that_succeeds(self) -> None:
        job_id = await self._create(num_rows=24, num_epochs=2, is_validated=True)
        job = await self._in_phase(job_id, *FINAL)
        if job["status"] != "succeeded":
            return
        model = job["fine_tuned_model"]
        await self._shop.ask(model)
        said = await self._sdk.responses.create(model=model, input="Where is my parcel?", max_output_tokens=16)
        await self._sdk.responses.retrieve(said.id)
        await self._sdk.responses.delete(said.id)
        self.models.append(model)

    async def a_job_that_is_cancelled(self) -> None:
        job_id = await self._create(num_rows=400, num_epochs=3)
        await self._in_phase(job_id, *HELD, *FINAL)
        await self._cancel(job_id)

    async def a_job_that_is_deleted(self) -> None:
        job_id = await self._create(num_rows=24, num_epochs=1)
        await self._in_phase(job_id, *FINAL)
        await self._sdk.delete(f"/fine_tuning/jobs/{job_id}?delete_model=true", cast_to=object)
        self._promise_gone(job_id, lambda: self._sdk.fine_tuning.jobs.retrieve(job_id))

    async def more_jobs_than_slots(self) -> None:
        job_ids = [await self._create(num_rows=800, num_epochs=1) for _ in range(6)]

        async def is_one_told_its_place() -> bool:
            queued = {"_id": {"$in": job_ids}, "queue.position": {"$gt": 0}}
            return await self._db["jobs"].find_one(queued) is not None

        await self._until(is_one_told_its_place)
        for job_id in job_ids:
            await self._cancel(job_id)

    async def a_job_that_is_cancelled_late(self) -> None:
        job_id = await self._create(num_rows=24, num_epochs=1)
        await self._in_phase(job_id, *FINISHING, *FINAL, every_s=0.005)
        await self._cancel(job_id)

    async def a_job_that_is_paused(self) -> None:
        job_id = await self._create(num_rows=24, num_epochs=12)
        await self._seen(job_id, lambda job: bool(job["checkpoint"]) or job["status"] in FINAL)
        await self._sdk.fine_tuning.jobs.pause(job_id)
        await self._in_phase(job_id, "paused", *FINAL)
        await self._sdk.fine_tuning.jobs.resume(job_id)
        await self._in_phase(job_id, *FINAL)

    async def a_checkpoint_that_is_damaged(self) -> None:
        job_id = await self._create(num_rows=24, num_epochs=15)
        await self._seen(job_id, lambda job: bool(job["checkpoint"]) or job["status"] in FINAL)
        await self._sdk.fine_tuning.jobs.pause(job_id)
        job = await self._in_phase(job_id, "paused", *FINAL)
        if job["phase"] != "paused":
            return
        damaged = self._stack.home / "objects" / job["checkpoint"]["blob"]["key"] / "adapter_model.safetensors"
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        try:
            await self._sdk.fine_tuning.jobs.resume(job_id)
            await self._in_phase(job_id, "training", *FINISHING, *FINAL)
        finally:
            damaged.write_bytes(content)

    async def a_job_whose_node_falls_silent(self) -> None:
        job_id = await self._create(num_rows=800, num_epochs=2)
        job = await self._in_phase(job_id, "training", *FINAL)
        if job["status"] in FINAL or self._stack.processes["trainer"] is None:
            return
        attempt = job["attempt"]
        self._stack.kill("trainer", signal.SIGSTOP)
        try:
            await self._seen(job_id, lambda job: job["attempt"] > attempt or job["phase"] not in HELD)
            await self._until(self._is_trainer_lost)
        finally:
            self._stack.kill("trainer", signal.SIGCONT)
        await self._cancel(job_id)

    async def a_job_whose_child_always_dies(self) -> None:
        job_id = await self._create(num_rows=800, num_epochs=1)
        killed: set[int] = set()

        async def is_over() -> bool:
            for path in self._stack.home.glob(f"trainer/*/{job_id}-a*/child.pid"):
                with suppress(OSError, ValueError):
                    if (pid := int(path.read_text())) not in killed:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
            return (await self._shop.doc(job_id))["status"] in FINAL

        await self._until(is_over, within_s=2 * IN_TIME_S)

    # Files, uploads, models

    async def files_good_and_bad(self) -> None:
        other = await self._sdk.files.create(file=("notes.txt", b"notes"), purpose="user_data")
        await self._sdk.files.delete(other.id)
        self._promise_gone(other.id, lambda: self._sdk.files.retrieve(other.id))
        bad = await self._sdk.files.create(file=("bad.jsonl", BAD_ROWS), purpose="fine-tune")
        self.bad_files.add(bad.id)
        with suppress(openai.BadRequestError):
            await self._sdk.files.create(file=("empty.jsonl", EMPTY), purpose="fine-tune")
        deed = {DEED: secrets.token_hex(8)}
        job = await self._sdk.fine_tuning.jobs.create(model=TINY, training_file=bad.id, metadata=deed)
        self.acknowledged.add(job.id)
        await self._in_phase(job.id, *FINAL)

    async def an_upload_in_parts(self) -> None:
        halves = [b"a" * 700, b"b" * 300]
        asked: Any = {"filename": "parts.txt", "mime_type": "text/plain", "purpose": "user_data"}
        upload = await self._sdk.uploads.create(bytes=1000, **asked)
        parts = [await self._sdk.uploads.parts.create(upload.id, data=half) for half in halves]
        done = await self._sdk.uploads.complete(upload.id, part_ids=[part.id for part in parts])
        assert done.file is not None
        if (content := (await self._sdk.files.content(done.file.id)).content) != b"".join(halves):
            self.broken.append(f"an upload came back with {len(content)} other bytes")
        given_up = await self._sdk.uploads.create(bytes=10, **asked)
        await self._sdk.uploads.parts.create(given_up.id, data=b"x" * 10)
        await self._sdk.uploads.cancel(given_up.id)

    async def a_model_that_is_shared_and_deleted(self) -> None:
        if not self.models:
            await self.a_job_that_succeeds()
        if not self.models:
            return
        model = self.models.pop(0)
        project = await self._sdk.admin.organization.projects.create(name=secrets.token_hex(4))
        await self._sdk.fine_tuning.checkpoints.permissions.create(model, project_ids=[project.id])
        await self._sdk.models.delete(model)
        self._promise_gone(model, lambda: self._sdk.models.retrieve(model))

    # Operators and time

    async def people_and_keys(self) -> None:
        organization = self._sdk.admin.organization
        project = await organization.projects.create(name=secrets.token_hex(4))
        place = f"/organization/projects/{project.id}/api_keys"
        made: Any = await self._sdk.post(place, cast_to=object, body={"name": "k", "scopes": ["files:read"]})
        new: Any = await self._sdk.post(f"{place}/{made['id']}/rotate", cast_to=object, body={})
        await organization.projects.api_keys.delete(made["id"], project_id=project.id)
        self._promised.append((f"the key {made['id']} was deleted", lambda: self._is_refused(new["value"])))
        body = {"email": f"{secrets.token_hex(6)}@example.com", "role": "owner"}
        user: Any = await self._sdk.post("/organization/users", cast_to=object, body=body)
        await organization.projects.users.create(project.id, role="member", user_id=user["id"])
        await organization.users.delete(user["id"])
        self._promise_gone(user["id"], lambda: organization.users.retrieve(user["id"]))
        await organization.projects.archive(project.id)

    async def a_request_with_a_key(self) -> None:
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        body = {"file": ("keyed.txt", b"keyed"), "purpose": "user_data"}
        first = await self._sdk.files.create(**body, extra_headers=headers)  # type: ignore[arg-type]
        again = await self._sdk.files.create(**body, extra_headers=headers)  # type: ignore[arg-type]
        if first.id != again.id:
            self.broken.append(f"one Idempotency-Key made {first.id} and {again.id}")

    async def time_that_passes(self) -> None:
        expires: Any = {"anchor": "created_at", "seconds": 3600}
        file = await self._sdk.files.create(file=("t.txt", b"t"), purpose="user_data", expires_after=expires)
        asked: Any = {"filename": "late.txt", "mime_type": "text/plain", "purpose": "user_data"}
        upload = await self._sdk.uploads.create(bytes=10, **asked)
        await self._sdk.uploads.parts.create(upload.id, data=b"x" * 10)
        long_ago = {"$dateSubtract": {"startDate": "$$NOW", "unit": "hour", "amount": 2}}
        await self._db["files"].update_one({"_id": file.id}, [{"$set": {"expires_at": long_ago}}])
        await self._db["uploads"].update_one({"_id": upload.id}, [{"$set": {"expires_at": long_ago}}])

        async def is_gone() -> bool:
            doc = await self._db["files"].find_one({"_id": file.id})
            return doc is not None and doc["phase"] == "deleted"

        await self._until(is_gone)
        await self._db["objects"].update_many({"references": []}, [{"$set": {"touched_at": long_ago}}])
        await asyncio.sleep(1)

    async def a_broker_that_comes_back_empty(self) -> None:
        self._stack.kill("tansu")
        await self._stack.wait_ready("tansu", IN_TIME_S)
        await self.files_good_and_bad()

    async def a_migration(self) -> None:
        """Of a fresh database, over and over until it ends well."""
        env = self._stack.env | self._migrating | {"LUTHIER_MONGO_DATABASE": "migrated"}
        for _ in range(40):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "luthier_common.kit.migrate", env=env, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            if await process.wait() == 0:
                return
        self.broken.append("the migration never ends well")

    # Words of which stories are made

    async def _cancel(self, job_id: str) -> None:
        await self._sdk.fine_tuning.jobs.cancel(job_id)

        async def is_cancelled() -> bool:
            return bool((await self._shop.doc(job_id))["status"] == "cancelled")

        self._promised.append((f"{job_id} was cancelled", is_cancelled))

    def _promise_gone(self, thing: str, retrieve: Callable[[], Awaitable[Any]]) -> None:
        async def is_gone() -> bool:
            try:
                await retrieve()
            except openai.NotFoundError:
                return True
            return False

        self._promised.append((f"{thing} was deleted", is_gone))

    async def _is_refused(self, key: str) -> bool:
        try:
            await self._sdk.with_options(api_key=key).files.list()
        except openai.AuthenticationError:
            return True
        return False

    async def _create(self, *, num_rows: int, num_epochs: int, is_validated: bool = False) -> str:
        deed = secrets.token_hex(8)
        more: dict[str, Any] = {"metadata": {DEED: deed}}
        if is_validated:
            more["validation_file"] = await self._shop.upload(
                write_chat_file(self._folder / f"{deed}.valid.jsonl", 12, 900)
            )
        job = await self._shop.create(
            write_chat_file(self._folder / f"{deed}.jsonl", num_rows), num_epochs=num_epochs, **more
        )
        self.acknowledged.add(job.id)
        return job.id

    async def _in_phase(self, job_id: str, *phases: str, every_s: float = 0.05) -> Doc:
        return await self._seen(job_id, lambda job: job["phase"] in phases, every_s=every_s)

    async def _seen(self, job_id: str, is_so: Callable[[Doc], bool], *, every_s: float = 0.05) -> Doc:
        async def seen() -> bool:
            return is_so(await self._shop.doc(job_id))

        await self._until(seen, within_s=2 * IN_TIME_S, every_s=every_s)
        return await self._shop.doc(job_id)

    async def _is_trainer_lost(self) -> bool:
        return await self._db["nodes"].find_one({"role": "trainer", "phase": "live"}) is None

    async def _until(
        self, seen: Callable[[], Awaitable[bool]], *, within_s: float = IN_TIME_S, every_s: float = 0.05
    ) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not await seen():
                    await asyncio.sleep(every_s)
        except TimeoutError as error:
            raise TooLateError(json.dumps(self.told)) from error
