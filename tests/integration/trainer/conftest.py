"""A world for a trainer node: database, objects, a tiny base, a short and a long training file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builders.trainer_node import World, world_at
from luthier_common.kit.mongo import Database


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with world_at(db, tmp_path) as made:
        yield made
