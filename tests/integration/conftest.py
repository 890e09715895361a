"""Fixtures over real servers: a migrated database of its own for each test."""

from collections.abc import AsyncIterator

import pytest

from luthier_common.kit.migrate import migrate
from luthier_common.kit.mongo import Database, open_mongo


@pytest.fixture
async def db(mongo_url: str, database_name: str) -> AsyncIterator[Database]:
    async with open_mongo(mongo_url, database_name) as database:
        await migrate(database)
        yield database
        await database.client.drop_database(database_name)
