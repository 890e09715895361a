"""What an engine says of its joining stands once, also when it does not hear that it was written."""

import uuid

import pytest

from luthier_common.kit.failpoints import configure_failpoints
from luthier_common.kit.mongo import Database
from luthier_inference.store import InferenceStore


async def told(db: Database, node: str) -> list[str]:
    doc = await db["nodes"].find_one({"_id": node})
    assert doc is not None
    assert doc["phase"] == "live"
    return [entry["type"] for entry in doc["outbox"]]


@pytest.mark.parametrize("write", ["create", "advance"])
async def test_a_joining_whose_answer_was_lost_is_told_once(db: Database, write: str) -> None:
    store = InferenceStore(db, f"inference-{uuid.uuid4().hex[:8]}")
    times = 1 if write == "create" else 2
    if times == 2:
        await store.join("cpu", "http://there")
    configure_failpoints(f"journal.after_{write}=lost*1")
    try:
        await store.join("cpu", "http://here")
    finally:
        configure_failpoints()
    assert await told(db, store.node) == ["NodeJoined"] * times


async def test_each_joining_is_told(db: Database) -> None:
    """One that was called lost, or has another address, is live again by its own word."""
    store = InferenceStore(db, f"inference-{uuid.uuid4().hex[:8]}")
    for _ in range(3):
        await store.join("cpu", "http://here")
    assert await told(db, store.node) == ["NodeJoined"] * 3
