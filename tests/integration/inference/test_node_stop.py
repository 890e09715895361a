"""The end of an inference node."""

import asyncio
import signal
from typing import Any

from luthier_common.kit.mongo import Database


async def test_node_leaves_in_order(node: Any, db: Database) -> None:
    node.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(node.process.wait(), 15) == 0
    doc = await db["nodes"].find_one({"_id": "inference-test"})
    assert doc is not None
    assert doc["phase"] == "left"
    assert doc["bases"] == []
    assert [entry["type"] for entry in doc["outbox"]] == ["NodeJoined", "NodeLeft"]
