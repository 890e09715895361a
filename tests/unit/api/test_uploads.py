"""Multipart bodies in pieces of any size."""

from collections.abc import AsyncIterator
from contextlib import nullcontext

import pytest

from luthier_api.errors import ApiError
from luthier_api.upload import Upload

BODY = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\nContent-Type: text/html\r\n\r\n'
    b"\xef\xbb\xbf{}\r\n--a\r\n\r\n--b--\r\n"
)
TYPE = "multipart/form-data; boundary=b"


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, size: int, kind: str = TYPE) -> tuple[dict[str, str], list[tuple[str, str, bytes]]]:
    upload = Upload(kind, pieces(body, size), nullcontext())
    found = [
        (part.name, part.filename, b"".join([chunk async for chunk in part.chunks])) async for part in upload.files()
    ]
    return upload.fields, found


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
async def test_the_size_of_the_pieces_changes_nothing(size: int) -> None:
    fields, found = await read(BODY, size)
    assert fields == {"purpose": "fine-tune"}
    assert found == [("file", "a.jsonl", b"\xef\xbb\xbf{}\r\n--a\r\n")]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (BODY, "application/json"),
        (BODY, "multipart/form-data"),
        (BODY[:-10], TYPE),
        (b"", TYPE),
        (b"garbage", TYPE),
        (b"--b\r\n" + b"x: " + b"y" * 10_000 + b"\r\n\r\n", TYPE),
        (BODY.replace(b"fine-tune", b"\xff"), TYPE),
        (BODY.replace(b"fine-tune", b"f" * 5000), TYPE),
        (b'--b\r\nContent-Disposition: form-data; name="p"\r\n\r\n1\r\n' * 40 + BODY, TYPE),
    ],
)
async def test_broken_bodies_are_refused(body: bytes, kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        await read(body, 100, kind)
    assert caught.value.status in (400, 413)
