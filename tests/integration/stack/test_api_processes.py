"""One address, several processes behind it: what a machine with many cores is for."""

import os
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from builders.waiting import until
from luthier_common.kit.mongo import open_mongo
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LUTHIER_")]:
        monkeypatch.delenv(name)


async def _make_project(stack: Stack, name: str) -> int:
    """Over a connection of its own, as a new client would."""
    headers = {"authorization": f"Bearer {stack.admin_key}"}
    async with httpx2.AsyncClient(base_url=stack.api_url, headers=headers, trust_env=False) as http:
        return (await http.post("/v1/organization/projects", json={"name": name})).status_code


async def test_processes_of_the_api_share_one_port_and_one_goes_on_without_the_other(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    settings = StackSettings(home=tmp_path, port=free_port(), services=("api",), api_processes=2)
    async with Stack(settings) as stack, open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db:

        async def have_answered(number: int) -> bool:
            assert await _make_project(stack, "shared") == 200
            return len(await db["audit_log"].distinct("instance", {"status": 200})) == number

        await until(lambda: have_answered(2), what="answers of both processes")
        assert await db["api_keys"].count_documents({}) == 1, "the first key is made once"

        await stack.stop_service("api")
        assert [await _make_project(stack, f"alone-{number}") for number in range(8)] == [200] * 8
        await stack.start_service("api")
        await until(lambda: have_answered(3), what="answers of the process that came back")
