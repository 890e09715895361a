"""A world for a trainer node: database, objects, a tiny base, a short and a long training file."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builders.bases import make_tiny_base, write_chat_file
from builders.trainer_node import World
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import open_objects


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[World]:
    base = make_tiny_base(tmp_path / "base", name="tiny")
    digest = json.loads((base / "bundle.json").read_bytes())["digest"]
    (tmp_path / "objects").mkdir()
    async with open_objects(f"file://{tmp_path / 'objects'}") as objects:
        made = World(db, objects, tmp_path, digest)
        await made.add_base()
        await made.add_file("file-training", write_chat_file(tmp_path / "train.jsonl", 18))
        await made.add_file("file-long", write_chat_file(tmp_path / "long.jsonl", 120))
        await made.add_file("file-validation", write_chat_file(tmp_path / "valid.jsonl", 4, start=1000))
        yield made
