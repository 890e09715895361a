"""A check that the machine ends says nothing about the file: it is tried again, by whoever comes."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from builders.bases import write_chat_file
from builders.waiting import until
from luthier_common.kit.mongo import Database, Doc

NEVER_ENDS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def check_of_mine() -> int | None:
    """The process that checks a file for this one, if there is one. Threads and other children may end meanwhile."""
    pids: list[str] = []
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            pids += children.read_text().split()
    for pid in pids:
        with suppress(OSError):
            if b"luthier_file_validator.check" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


async def test_only_the_third_check_that_the_machine_ends_is_a_verdict(
    db: Database, make_validator: Callable[..., Any], upload: Callable[..., Any], put_template: Any, tmp_path: Path
) -> None:
    await put_template(NEVER_ENDS)
    file_id = await upload(write_chat_file(tmp_path / "data.jsonl", 12).read_bytes())
    lease: Doc = {"_id": f"validate/{file_id}"}

    async def killed_by_the_host() -> None:
        # A new one each time: what was counted outlives a restart.
        validator = await make_validator(claim_ttl_s=1.0)

        async def is_read() -> int | None:
            await validator.files.look()
            return check_of_mine()

        os.kill(await until(is_read, every_s=0.1, what="the file is read"), signal.SIGKILL)

    for number in (1, 2):
        await killed_by_the_host()

        async def rests(number: int = number) -> bool:
            return bool(await db["leases"].find_one({**lease, "num_faults": number, "owner": None}))

        await until(rests, what="the check rests")
        resting = await make_validator(claim_ttl_s=1.0)
        for _ in range(5):
            await resting.files.look()
            await asyncio.sleep(0.1)
        assert check_of_mine() is None
        doc = await db["files"].find_one({"_id": file_id})
        assert doc is not None
        assert (doc["phase"], doc["verdict"]) == ("uploaded", None)
        await db["leases"].update_one(lease, [{"$set": {"until": {"$subtract": ["$$NOW", 1000]}}}])
    await killed_by_the_host()

    async def verdict() -> Doc | None:
        found: Doc | None = await db["files"].find_one({"_id": file_id, "phase": "rejected"})
        return found

    problem = (await until(verdict, what="a verdict"))["verdict"]["problem"]
    assert (problem["code"], problem["owner"]) == ("internal_error", "operator")
    # Whoever asks for it anew has all tries again.
    assert await db["leases"].count_documents({"num_faults": {"$exists": True}}) == 0
