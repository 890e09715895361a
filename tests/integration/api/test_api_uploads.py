"""Uploads in parts, as the openai SDK and careless clients make them."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from integration.api.conftest import Api
from luthier_common.kit.mongo import Doc

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
PIECES = [b"\xef\xbb\xbf" + LINE, LINE * 2, LINE * 3]
WHOLE = b"".join(PIECES)


class Begun(NamedTuple):
    """A pending upload whose parts are all stored."""

    id: str
    part_ids: list[str]


@pytest.fixture
async def strict(api: Api) -> AsyncIterator[AsyncOpenAI]:
    """A client that refuses an answer which does not have its type."""
    async with AsyncOpenAI(
        base_url=f"{api.url}/v1", api_key=api.key, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


async def begin(client: AsyncOpenAI, **more: Any) -> Begun:
    wanted: dict[str, Any] = {"bytes": len(WHOLE), "filename": "a.jsonl", "mime_type": "application/jsonl"}
    upload = await client.uploads.create(**(wanted | {"purpose": "fine-tune"} | more))
    parts = await asyncio.gather(*(client.uploads.parts.create(upload.id, data=("upload", piece)) for piece in PIECES))
    return Begun(upload.id, [part.id for part in parts])


async def complete(api: Api, begun: Begun, **more: Any) -> httpx2.Response:
    async with api.http() as http:
        return await http.post(f"/v1/uploads/{begun.id}/complete", json={"part_ids": begun.part_ids} | more)


async def rows_of(api: Api, references: list[str]) -> list[Doc]:
    return await api.db["objects"].find({"references": {"$in": references}}).to_list(None)


async def test_parts_sent_at_once_become_the_file_in_the_order_named(api: Api, strict: AsyncOpenAI) -> None:
    upload = await strict.uploads.create(
        bytes=len(WHOLE),
        filename='../träin "1".jsonl',
        mime_type="application/jsonl",
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (upload.object, upload.status, upload.bytes, upload.file) == ("upload", "pending", len(WHOLE), None)
    assert upload.id.startswith("upload_")
    assert upload.filename == 'träin "1".jsonl'
    assert upload.expires_at == upload.created_at + 3600
    parts = await asyncio.gather(*(strict.uploads.parts.create(upload.id, data=piece) for piece in reversed(PIECES)))
    assert {(part.object, part.upload_id) for part in parts} == {("upload.part", upload.id)}
    part_ids = [part.id for part in reversed(parts)]
    assert {row["references"][0] for row in await rows_of(api, [f"part/{i}" for i in part_ids])} == {
        f"part/{part_id}" for part_id in part_ids
    }
    done = await strict.uploads.complete(upload.id, part_ids=part_ids, md5=hashlib.md5(WHOLE).hexdigest())
    assert (done.id, done.status) == (upload.id, "completed")
    assert done.file is not None
    assert (done.file.filename, done.file.bytes, done.file.purpose) == (upload.filename, len(WHOLE), "fine-tune")
    assert done.file.expires_at == done.file.created_at + 3600
    assert (await strict.files.content(done.file.id)).content == WHOLE
    assert (await strict.files.retrieve(done.file.id)) == done.file
    job = await strict.fine_tuning.jobs.create(model="tiny-base", training_file=done.file.id)
    assert job.training_file == done.file.id
    assert await rows_of(api, [f"part/{part_id}" for part_id in part_ids]) == []


def test_the_sdk_cuts_a_file_into_parts_by_itself(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(LINE * 5000)
    with OpenAI(base_url=f"{api.url}/v1", api_key=api.key, _strict_response_validation=True) as client:
        done = client.uploads.upload_file_chunked(
            file=path,
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=100_000,
            md5=hashlib.md5(path.read_bytes()).hexdigest(),
        )
        assert (done.status, done.filename) == ("completed", "long.jsonl")
        assert done.file is not None
        assert client.files.content(done.file.id).content == path.read_bytes()
        assert (
            client.uploads.create(bytes=1, filename="b", mime_type="text/plain", purpose="user_data").status
            == "pending"
        )


async def test_the_async_sdk_cuts_bytes_into_parts_by_itself(strict: AsyncOpenAI) -> None:
    content = LINE * 3000
    done = await strict.uploads.upload_file_chunked(
        file=content, filename="b", bytes=len(content), mime_type="text/jsonl", purpose="batch", part_size=100_000
    )
    assert done.file is not None
    assert (await strict.files.content(done.file.id)).content == content


async def test_what_does_not_fit_is_refused_and_the_upload_stays_pending(api: Api, strict: AsyncOpenAI) -> None:
    begun, other = await begin(strict), await begin(strict)
    ids = begun.part_ids
    before = await api.db["objects"].count_documents({})
    for more, param, code in (
        ({"md5": hashlib.md5(b"other").hexdigest()}, "md5", "checksum_mismatch"),
        ({"part_ids": ids[::-1], "md5": hashlib.md5(WHOLE).hexdigest()}, "md5", "checksum_mismatch"),
        ({"part_ids": ids[:2]}, "part_ids", "size_mismatch"),
        ({"part_ids": [*ids, other.part_ids[0]]}, "part_ids", "invalid_value"),
        ({"part_ids": [*ids[:2], ids[1]]}, "part_ids", "invalid_value"),
        ({"part_ids": []}, "part_ids", "invalid_value"),
        ({"part_ids": None}, "part_ids", "invalid_value"),
        ({"md5": "abc"}, "md5", "invalid_value"),
        ({"extra": 1}, "extra", "unknown_parameter"),
    ):
        answer = await complete(api, begun, **more)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code), (more, error)
    assert await api.db["objects"].count_documents({}) == before
    assert (await strict.uploads.complete(begun.id, part_ids=ids)).status == "completed"


async def test_completing_again_gives_the_same_file_and_other_verbs_are_refused_once(
    api: Api, strict: AsyncOpenAI
) -> None:
    begun = await begin(strict)
    answers = await asyncio.gather(*(complete(api, begun) for _ in range(4)), complete(api, begun))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.json()["file"]["id"] for answer in answers}) == 1
    file_id = answers[0].json()["file"]["id"]
    assert len(await rows_of(api, [f"file/{file_id}"])) == 1
    async with api.http() as http:
        cancelled = await http.post(f"/v1/uploads/{begun.id}/cancel")
        late = await http.post(f"/v1/uploads/{begun.id}/parts", files={"data": ("upload", b"x")})
        other_parts = await complete(api, begun, part_ids=begun.part_ids[::-1])
    for answer in (cancelled, late, other_parts):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state"), answer.text
        assert answer.headers["x-should-retry"] == "false"
    assert (await strict.files.content(file_id)).content == WHOLE


async def test_a_cancelled_upload_takes_nothing_more_and_lets_its_parts_go(api: Api, strict: AsyncOpenAI) -> None:
    begun = await begin(strict)
    assert (await strict.uploads.cancel(begun.id)).status == "cancelled"
    assert (await strict.uploads.cancel(begun.id)).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        await strict.uploads.complete(begun.id, part_ids=begun.part_ids)
    before = await api.db["objects"].count_documents({})
    with pytest.raises(openai.ConflictError):
        await strict.uploads.parts.create(begun.id, data=b"more")
    assert await api.db["objects"].count_documents({}) == before
    assert await rows_of(api, [f"part/{part_id}" for part_id in begun.part_ids]) == []


async def test_an_upload_expires_by_the_databases_clock(api: Api, strict: AsyncOpenAI) -> None:
    begun = await begin(strict)
    past = datetime.now(UTC) - timedelta(seconds=1)
    await api.db["uploads"].update_one({"_id": begun.id}, {"$set": {"expires_at": past}})
    for attempt in (
        strict.uploads.complete(begun.id, part_ids=begun.part_ids),
        strict.uploads.cancel(begun.id),
        strict.uploads.parts.create(begun.id, data=b"more"),
    ):
        with pytest.raises(openai.ConflictError, match="expired"):
            await attempt
    await api.db["uploads"].update_one({"_id": begun.id}, {"$set": {"expires_at": past - timedelta(hours=1)}})
    async with asyncio.timeout(20):
        while await rows_of(api, [f"part/{part_id}" for part_id in begun.part_ids]):
            await asyncio.sleep(0.1)
    row = await api.db["uploads"].find_one({"_id": begun.id})
    assert row is not None
    assert row["status"] == "expired"


async def test_wrong_uploads_and_wrong_parts_are_refused_by_name(api: Api, strict: AsyncOpenAI) -> None:
    right = {"bytes": 10, "filename": "a", "mime_type": "text/plain", "purpose": "fine-tune"}
    begun = await begin(strict)
    async with api.http() as http:
        for change, param, status in (
            ({"bytes": 0}, "bytes", 400),
            ({"bytes": 20_000_001}, "bytes", 413),
            ({"bytes": "10"}, "bytes", 400),
            ({"purpose": "nonsense"}, "purpose", 400),
            ({"filename": ""}, "filename", 400),
            ({"mime_type": "\x00"}, "mime_type", 400),
            ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds", 400),
            ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor", 400),
            ({"more": 1}, "more", 400),
        ):
            answer = await http.post("/v1/uploads", json=right | change)
            assert answer.status_code == status, (change, answer.text)
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        parts = f"/v1/uploads/{begun.id}/parts"
        wrong_name = await http.post(parts, files={"file": ("upload", b"x")})
        no_data = await http.post(parts, files={"x": (None, b"1")})
        empty = await http.post(parts, files={"data": ("upload", b"")})
        large = await http.post(parts, files={"data": ("upload", os.urandom(1_000_001))})
        nowhere = await http.post("/v1/uploads/upload_0/parts", files={"data": ("upload", b"x")})
    assert (wrong_name.status_code, wrong_name.json()["error"]["param"]) == (400, "file")
    assert (no_data.status_code, no_data.json()["error"]["param"]) == (400, "data")
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "empty_file")
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    assert nowhere.status_code == 404


async def test_another_projects_upload_is_as_unknown_as_none(api: Api, strict: AsyncOpenAI) -> None:
    begun = await begin(strict)
    unknown = begun.id[:-4] + "ffff"
    async with api.http(await api.new_key("admin", project="proj-strangers")) as http:
        for verb, body in (
            ("parts", {"files": {"data": ("upload", b"x")}}),
            ("complete", {"json": {"part_ids": begun.part_ids}}),
            ("cancel", {}),
        ):
            answers = [await http.post(f"/v1/uploads/{upload}/{verb}", **body) for upload in (begun.id, unknown)]
            texts = [answer.json()["error"] | {"request_id": ""} for answer in answers]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert str(texts[0]).replace(begun.id, "") == str(texts[1]).replace(unknown, "")
    assert (await complete(api, begun)).status_code == 200
