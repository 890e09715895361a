"""The first key of an installation lets its operator in, whatever breaks while it is made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier_api.first_key import ensure_admin_key
from luthier_api.keys import KeyRing
from luthier_common.kit.failpoints import FailPointError, configure_failpoints
from luthier_common.kit.mongo import open_mongo


@pytest.fixture(autouse=True)
def all_off() -> Iterator[None]:
    yield
    configure_failpoints()


@pytest.mark.parametrize("name", ["keys.before_admin_row", "keys.after_issue"])
async def test_a_break_while_the_first_key_is_made_locks_nobody_out(
    mongo_url: str, database_name: str, tmp_path: Path, name: str
) -> None:
    async with open_mongo(mongo_url, database_name) as db:
        ring, path = KeyRing(db, b"pepper", cache_s=0), tmp_path / "admin-key"
        configure_failpoints(f"{name}=raise*1")
        with pytest.raises(FailPointError):
            await ensure_admin_key(ring, db, path)
        await ensure_admin_key(ring, db, path)
        assert await ring.principal(path.read_text().strip()) is not None
        assert not await ensure_admin_key(ring, db, path)
