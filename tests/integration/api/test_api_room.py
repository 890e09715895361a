"""A project has so much room for what it stores, and no more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from integration.api.conftest import Api, run_api

MOST = 1_000_000
ENV = {"LUTHIER_MAX_PROJECT_BYTES": str(MOST)}


@pytest.fixture(scope="module")
async def narrow(
    mongo_url: str, kafka_url: str, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> AsyncIterator[Api]:
    home: Path = tmp_path_factory.mktemp("room")
    async with run_api(mongo_url, kafka_url, home, free_port(), "test_api_narrow", ENV) as api:
        yield api


async def send(http: httpx2.AsyncClient, num_bytes: int) -> tuple[int, dict[str, Any]]:
    answer = await http.post("/v1/files", files={"file": ("a.jsonl", b"x" * num_bytes)}, data={"purpose": "user_data"})
    return answer.status_code, answer.json()


async def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(narrow: Api) -> None:
    async with narrow.http() as http:
        status, first = await send(http, 700_000)
        assert status == 200
        status, refused = await send(http, 300_001)
        assert (status, refused["error"]["code"], refused["error"]["param"]) == (403, "storage_limit_exceeded", "file")
        upload = {"bytes": 400_000, "filename": "b", "mime_type": "text/plain", "purpose": "user_data"}
        upload_id = (await http.post("/v1/uploads", json=upload)).json()["id"]
        part = await http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("part", b"x" * 400_000)})
        assert (part.status_code, part.json()["error"]["code"]) == (403, "storage_limit_exceeded")
        assert await narrow.db["objects"].count_documents({}) == 1
        assert (await send(http, 300_000))[0] == 200
        assert (await send(http, 1))[0] == 403
        await http.delete(f"/v1/files/{first['id']}")
        assert (await send(http, 700_000))[0] == 200, "what was deleted makes room at once"


async def test_uploads_at_once_fill_no_more_than_the_room(narrow: Api) -> None:
    async with narrow.http(await narrow.new_key("admin", project="proj-at-once")) as http:
        answers = await asyncio.gather(*(send(http, 400_000) for _ in range(6)))
        listed = (await http.get("/v1/files")).json()["data"]
    stored = [status for status, _ in answers if status == 200]
    assert len(stored) == len(listed) <= MOST // 400_000
    assert {body["error"]["code"] for status, body in answers if status != 200} == {"storage_limit_exceeded"}
    kept = narrow.db["objects"].find({"project": "proj-at-once"})
    assert [row["bytes"] async for row in kept] == [400_000] * len(stored), "what was refused leaves nothing"


async def test_another_project_has_room_of_its_own(narrow: Api) -> None:
    async with narrow.http(await narrow.new_key("admin", project="proj-roomy")) as http:
        assert (await send(http, MOST))[0] == 200


async def test_parts_that_fit_can_be_put_together(narrow: Api) -> None:
    async with narrow.http(await narrow.new_key("admin", project="proj-parts")) as http:
        upload = {"bytes": 900_000, "filename": "b", "mime_type": "text/plain", "purpose": "user_data"}
        upload_id = (await http.post("/v1/uploads", json=upload)).json()["id"]
        part = await http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("part", b"x" * 900_000)})
        done = await http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [part.json()["id"]]})
    assert (done.status_code, done.json()["status"]) == (200, "completed"), done.text
