"""A registry that dies while it registers, for a job that is cancelled then: what is there is whole, the rest goes."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from luthier_common.contract import events as f
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import FailPointError
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore

Make = Callable[..., Any]


@pytest.mark.parametrize("place", ["after_copy", "after_result", "after_result_file", "mid_model", "after_model"])
async def test_a_job_cancelled_after_a_crash_leaves_whole_files_and_no_model(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make, faults: Make, tmp_path: Any, place: str
) -> None:
    job = await train()
    faults(f"registry.{place}=raise*1", "seed", str(tmp_path / "faults.log"))
    with contextlib.suppress(FailPointError):
        await make_registry().look()
    assert (await job.tell(f.JobCancelled())).applied
    registry = make_registry("registry-2")
    await registry.look()
    await registry.look()
    await _let_all_lapse(db)
    await ledger.sweep(db, objects, older_than_s=0)
    async for file in db["files"].find({"phase": "processed"}):
        assert await objects.head(file["object_key"]) is not None, file["_id"]
    assert [info.key async for info in objects.list() if "/models/" in info.key] == []
    assert await db["models"].count_documents({"phase": {"$ne": "deleted"}}) == 0


async def test_weights_of_a_model_stay_when_the_deadline_of_its_making_passes(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make
) -> None:
    job = await train()
    registry = make_registry()
    await registry.look()
    verified = f.ServingVerified(node="n", num_golden_rows=1, num_answer_tokens=1, latency_s=0.1)
    await job.tell(verified, op_id="1/verify")
    await registry.look()
    await _let_all_lapse(db)
    await ledger.sweep(db, objects, older_than_s=0)
    row = await db[ledger.COLLECTION].find_one({"_id": {"$regex": "/models/"}})
    assert row is not None
    assert sorted(text.partition("/")[0] for text in row["references"]) == ["file", "file", "model"]


async def _let_all_lapse(db: Database) -> None:
    """As if the time to make things were over."""
    long_ago = {"intent_until": datetime(2020, 1, 1, tzinfo=UTC)}
    await db[ledger.COLLECTION].update_many({"intent_until": {"$type": "date"}}, {"$set": long_ago})
