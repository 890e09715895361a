"""Files as the openai SDK, curl and careless clients send and read them."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest

from builders.waiting import until
from integration.api.conftest import Api

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'


async def test_a_file_comes_back_byte_for_byte_with_its_bom(api: Api) -> None:
    content = b"\xef\xbb\xbf" + LINE * 3000
    sdk = api.sdk()
    made = await sdk.files.create(file=("träin.jsonl", content), purpose="fine-tune")
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "träin.jsonl", len(content), "fine-tune")
    assert made.status == "uploaded"
    assert made.sha256 == hashlib.sha256(content).hexdigest()  # type: ignore[attr-defined]
    assert (await sdk.files.retrieve(made.id)).id == made.id
    assert (await sdk.files.content(made.id)).content == content


async def test_the_parts_may_come_in_any_order(api: Api) -> None:
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="../../etc/a\xe2\x80\xae.jsonl"\r\n'
        b"Content-Type: application/pdf\r\n\r\n" + LINE + b"\r\n"
        b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--XX--\r\n'
    )
    async with api.http() as http:
        answer = await http.post(
            "/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=XX"}
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == "a.jsonl"
    assert answer.json()["bytes"] == len(LINE)


async def test_expiry_is_stored(api: Api) -> None:
    made = await api.sdk().files.create(
        file=("a.jsonl", LINE), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    kept = await api.db["files"].find_one({"_id": made.id})
    assert kept is not None
    assert kept["expires_at"] - kept["created_at"] == timedelta(hours=1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "nonsense"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "fine-tune", "extra": "1"}, "extra"),
        ({"purpose": "fine-tune", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        (
            {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "expires_after.seconds",
        ),
    ],
)
async def test_wrong_fields_are_refused_by_name_and_leave_nothing(api: Api, fields: dict[str, str], param: str) -> None:
    before = await api.db["objects"].count_documents({})
    async with api.http() as http:
        answer = await http.post("/v1/files", data=fields, files={"file": ("a.jsonl", LINE)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert await api.db["objects"].count_documents({}) == before


async def test_no_file_too_large_a_file_and_no_form(api: Api) -> None:
    async with api.http() as http:
        no_file = await http.post("/v1/files", files={"purpose": (None, b"fine-tune")})
        too_large = await http.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"x" * 3_100_000)}
        )
        no_form = await http.post("/v1/files", json={"file": "x"})
        cut = await http.post(
            "/v1/files",
            content=b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
            headers={"content-type": "multipart/form-data; boundary=XX"},
        )
        long_text = await http.post("/v1/files", data={"purpose": "x" * 5000}, files={"file": ("a.jsonl", LINE)})
    assert (no_file.status_code, no_file.json()["error"]["param"]) == (400, "file")
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "request_too_large")
    assert (no_form.status_code, no_form.json()["error"]["code"]) == (400, "invalid_multipart")
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "invalid_multipart")
    assert (long_text.status_code, long_text.json()["error"]["param"]) == (413, "purpose")


async def test_lists_are_paged_and_a_deleted_file_still_is_a_cursor(api: Api) -> None:
    key = await api.new_key("admin", project="proj-paging")
    sdk = api.sdk(key)
    made = [await sdk.files.create(file=(f"{n}.jsonl", LINE), purpose="fine-tune") for n in range(5)]
    await sdk.files.create(file=("other.bin", b"x"), purpose="user_data")
    newest_first = [file.id async for file in sdk.files.list(purpose="fine-tune", limit=2)]
    assert newest_first == [file.id for file in reversed(made)]
    assert [f.id async for f in sdk.files.list(purpose="fine-tune", limit=2, order="asc")] == [f.id for f in made]
    deleted = await sdk.files.delete(made[2].id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made[2].id, True, "file")
    rest = await sdk.files.list(purpose="fine-tune", after=made[2].id)
    assert [file.id for file in rest.data] == [made[1].id, made[0].id]
    with pytest.raises(openai.NotFoundError):
        await sdk.files.retrieve(made[2].id)
    with pytest.raises(openai.NotFoundError):
        await sdk.files.content(made[2].id)


async def test_a_deleted_files_bytes_stay_while_a_job_refers_to_them(api: Api) -> None:
    key = await api.new_key("admin", project="proj-ledger")
    sdk = api.sdk(key)
    file = await sdk.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    await sdk.fine_tuning.jobs.create(model="tiny-base", training_file=file.id)
    await sdk.files.delete(file.id)
    row = await api.db["objects"].find_one({"_id": f"org-default/proj-ledger/files/{file.id}"})
    assert row is not None
    assert row["references"] == [f"jobs/{file.id}"]


async def test_many_uploads_at_a_time(api: Api) -> None:
    sdk = api.sdk()
    made = await asyncio.gather(
        *(sdk.files.create(file=("a.jsonl", LINE * n), purpose="fine-tune") for n in range(1, 13))
    )
    assert len({file.id for file in made}) == 12


async def test_an_expired_file_is_removed(api: Api) -> None:
    sdk = api.sdk()
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    file = await sdk.files.create(file=("old.jsonl", LINE), purpose="user_data", expires_after=expiry)
    await api.db["files"].update_one({"_id": file.id}, {"$set": {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}})
    async with api.http() as http:

        async def is_gone() -> bool:
            return (await http.get(f"/v1/files/{file.id}")).status_code == 404

        async def is_let_go() -> bool:
            return await api.db["objects"].find_one({"references": f"file/{file.id}"}) is None

        await until(is_gone, every_s=0.1, what="the file to be removed")
        await until(is_let_go, every_s=0.1, what="its bytes to be let go")


async def test_strict_clients_believe_every_answer_sync_and_async(api: Api) -> None:
    options: Any = {"base_url": f"{api.url}/v1", "api_key": api.key, "_strict_response_validation": True}

    def use_files() -> None:
        with openai.OpenAI(**options) as client:
            made = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
            assert client.files.retrieve(made.id) == made
            assert client.files.list(limit=1).data == [made]
            assert client.files.content(made.id).content == LINE
            assert client.files.delete(made.id).deleted

    await asyncio.to_thread(use_files)
    async with openai.AsyncOpenAI(**options) as client:
        made = await client.files.create(file=("a.jsonl", LINE), purpose="batch")
        assert await client.files.retrieve(made.id) == made
        assert (await client.files.list(limit=1)).data == [made]
        assert (await client.files.content(made.id)).content == LINE
        assert (await client.files.delete(made.id)).deleted


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('say "hi" 100%.jsonl', 'say "hi" 100%.jsonl'),
        ("数据 \U0001f600.jsonl", "数据 \U0001f600.jsonl"),
        ("/etc/../x/passwd", "passwd"),
        ("C:\\data\\rows.jsonl", "rows.jsonl"),
        ("ä" * 150 + ".jsonl", "ä" * 124 + ".jsonl"),
        ("..", ".."),
        ("\u202egpj.exe", "gpj.exe"),
    ],
)
async def test_names_are_kept_and_harmless(api: Api, sent: str, kept: str) -> None:
    made = await api.sdk().files.create(file=(sent, LINE), purpose="user_data")
    assert made.filename == kept
    async with api.http() as http:
        answer = await http.get(f"/v1/files/{made.id}/content", headers={"accept": "application/binary"})
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].isascii()
    assert len(made.filename.encode()) <= 255


async def test_no_name_and_no_bytes(api: Api) -> None:
    def body(filename: str, content: bytes) -> bytes:
        head = f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'.encode()
        end = b'\r\n--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--XX--\r\n'
        return head + content + end

    before = await api.db["objects"].count_documents({})
    async with api.http() as http:
        kind = {"content-type": "multipart/form-data; boundary=XX"}
        empty = await http.post("/v1/files", content=body("a.jsonl", b""), headers=kind)
        assert await api.db["objects"].count_documents({}) == before
        nameless = await http.post("/v1/files", content=body("", LINE), headers=kind)
        odd_field = await http.post("/v1/files", files={"a%22b": ("a.jsonl", LINE)})
    assert (empty.status_code, empty.json()["error"]["code"], empty.json()["error"]["param"]) == (
        400,
        "empty_file",
        "file",
    )
    assert (nameless.status_code, nameless.json()["filename"]) == (200, "unnamed")
    assert (odd_field.status_code, odd_field.json()["error"]["code"]) == (400, "unknown_parameter")


async def test_order_may_be_spelled_out(api: Api) -> None:
    key = await api.new_key("admin", project="proj-order")
    sdk = api.sdk(key)
    ids = [(await sdk.files.create(file=("a", LINE), purpose="user_data")).id for _ in range(3)]
    async with api.http(key) as http:
        for order, expected in (("ascending", ids), ("descending", ids[::-1]), ("asc", ids), ("desc", ids[::-1])):
            answer = await http.get("/v1/files", params={"order": order})
            assert [file["id"] for file in answer.json()["data"]] == expected
        for wrong in ({"order": "up"}, {"limit": "0"}, {"limit": "10001"}, {"after": "ftjob-1"}):
            assert (await http.get("/v1/files", params=wrong)).status_code == 400


async def test_a_body_that_never_ends_is_cut_off_with_a_clear_error(api: Api) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n"
        "content-type: multipart/form-data; boundary=XX\r\ncontent-length: 100000\r\n\r\n"
        '--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    before = await api.db["objects"].count_documents({})
    writer.write(head.encode())

    async def drip() -> None:
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.2)

    dripping = asyncio.create_task(drip())
    try:
        answer = await asyncio.wait_for(reader.read(), 20)
    finally:
        dripping.cancel()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"upload_timeout"' in answer
    assert b"x-should-retry: false" in answer
    assert await api.db["objects"].count_documents({}) == before
