"""The whole system with a tiny base: every service its own process, driven by the real `openai` SDK."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from builders.bases import make_tiny_base, write_chat_file
from builders.workshop import TINY, Workshop
from luthier_common.kit.mongo import Database, open_mongo
from luthier_stack.ports import find_free_ports
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

QUICK = {
    "LUTHIER_DEFAULT_BASE": TINY,
    "LUTHIER_LEASE_TTL_S": "4",
    "LUTHIER_RENEW_S": "1",
    "LUTHIER_TICK_S": "0.5",
    "LUTHIER_CLAIM_TTL_S": "4",
    "LUTHIER_TRAINER_NUM_THREADS": "1",
}


def stack_settings(home: Path, base: Path, **env: str) -> StackSettings:
    return StackSettings(
        home=home,
        port=find_free_ports(1)[0],
        mongo_url=None,
        kafka_url=None,
        objects_url=None,
        service_env=QUICK | {"LUTHIER_BASE_SOURCES": json.dumps({TINY: str(base)})} | env,
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / TINY, name=TINY)


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> AsyncIterator[Stack]:
    async with Stack(stack_settings(tmp_path_factory.mktemp("home"), tiny_base)) as stack:
        for name in stack.settings.services:
            await stack.wait_ready(name, 120)
        yield stack


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key) as client:
        yield client


@pytest.fixture
async def store(stack: Stack) -> AsyncIterator[Database]:
    async with open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db:
        yield db


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_chat_file(tmp_path / "train.jsonl", 24)


@pytest.fixture
def workshop(client: AsyncOpenAI, store: Database) -> Workshop:
    return Workshop(client, store)
