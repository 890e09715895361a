"""What the database is asked for meanwhile, as it records it itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from integration.api.conftest import Api
from luthier_common.kit.mongo import Doc


@asynccontextmanager
async def recorded(api: Api, wanted: Doc) -> AsyncIterator[list[Doc]]:
    """The entries of the database's own profile that match, filled in when the block ends."""
    found: list[Doc] = []
    await api.db.command("profile", 2)
    try:
        yield found
    finally:
        await api.db.command("profile", 0)
        found += await api.db["system.profile"].find(wanted).to_list(None)
        await api.db["system.profile"].drop()
