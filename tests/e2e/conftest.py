"""The whole system with a tiny base: every service its own process, driven by the real `openai` SDK."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builders.bases import make_tiny_base, write_chat_file
from builders.workshop import TINY, Workshop, stack_settings, wait_ready, workshop_of
from luthier_stack.stack import Stack


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / TINY, name=TINY)


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> AsyncIterator[Stack]:
    async with Stack(stack_settings(tmp_path_factory.mktemp("home"), tiny_base)) as stack:
        await wait_ready(stack)
        yield stack


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_chat_file(tmp_path / "train.jsonl", 24)


@pytest.fixture
async def workshop(stack: Stack) -> AsyncIterator[Workshop]:
    async with workshop_of(stack) as workshop:
        yield workshop
