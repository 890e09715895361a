"""When two requests are the same one, and which answers a repetition gets again."""

import pytest

from luthier_api.errors import NO_RETRY, ApiError, ErrorCode
from luthier_api.idempotency import (
    FormFingerprint,
    Retry,
    fingerprint_for,
    is_final,
    is_kept,
    is_reused,
    read_key,
    read_retry,
    reservation_name,
)

JSON = {b"content-type": b"application/json; charset=utf-8"}


def make_form(boundary: str, parts: list[tuple[str, str | None, bytes]]) -> bytes:
    body = b""
    for name, filename, content in parts:
        shown = f'; filename="{filename}"' if filename else ""
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"{shown}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def fingerprint(boundary: str, body: bytes, step: int = 7) -> str | None:
    form = fingerprint_for(f"multipart/form-data; boundary={boundary}")
    assert isinstance(form, FormFingerprint)
    for start in range(0, len(body), step):
        form.feed(body[start : start + step])
    return form.digest()


PARTS = [("purpose", None, b"fine-tune"), ("file", "a.jsonl", b"{}\n" * 50)]


def test_a_form_is_known_whatever_its_boundary_pieces_and_order() -> None:
    known = fingerprint("one", make_form("one", PARTS))
    assert known is not None
    assert fingerprint("two", make_form("two", PARTS), step=1000) == known
    assert fingerprint("two", make_form("two", PARTS[::-1])) == known


@pytest.mark.parametrize(
    "other",
    [
        [PARTS[0], ("file", "b.jsonl", b"{}\n" * 50)],
        [PARTS[0], ("file", "a.jsonl", b"{}\n" * 51)],
        [("purpose", None, b"evals"), PARTS[1]],
        [PARTS[1]],
    ],
)
def test_another_form_is_another(other: list[tuple[str, str | None, bytes]]) -> None:
    assert fingerprint("x", make_form("x", other)) != fingerprint("x", make_form("x", PARTS))


def test_a_form_of_very_many_parts_is_not_kept_in_memory() -> None:
    assert fingerprint("x", make_form("x", [("a", None, b"")] * 5000), step=4096) is None


def test_a_form_that_is_cut_or_broken_is_not_known() -> None:
    assert fingerprint("x", make_form("x", PARTS)[:-8]) is None
    assert fingerprint("x", b"nothing of the kind\r\n\r\n" * 20) is None


def test_any_other_body_is_known_by_its_bytes() -> None:
    first, second = fingerprint_for("application/json"), fingerprint_for("application/json")
    first.feed(b'{"a":1}')
    second.feed(b'{"a":')
    second.feed(b"1}")
    assert first.digest() == second.digest()


def test_keys_are_short_and_never_shared() -> None:
    assert read_key(None) is None
    assert read_key(b"") is None
    assert read_key(b"k" * 255) == "k" * 255
    with pytest.raises(ApiError) as caught:
        read_key(b"k" * 256)
    assert (caught.value.status, caught.value.param) == (400, "Idempotency-Key")
    names = {reservation_name(owner, route, "k") for owner in (("a", None), ("a", "b")) for route in ("/x", "/y")}
    assert len(names | {reservation_name(("a",), "/x", "k")}) == 5


def test_only_final_small_json_answers_without_a_secret_are_kept() -> None:
    assert [status for status in (200, 400, 401, 403, 404, 409, 422, 429, 500, 503) if is_final(status)] == [
        200,
        400,
        404,
        422,
    ]
    assert is_kept(JSON, b"{}")
    assert not is_kept(JSON, b" " * 65_537)
    assert not is_kept(JSON, b'{"value":"sk-lut-abc"}')
    assert not is_kept({b"content-type": b"text/event-stream"}, b"")
    assert is_reused("a", "b")
    assert not is_reused(None, "b")
    assert not is_reused("a", None)


def test_every_409_tells_clients_not_to_repeat_it() -> None:
    conflicts = [error for error in ErrorCode if error.status == 409]
    assert conflicts
    for error in conflicts:
        assert ApiError(error, "x").headers == NO_RETRY
    assert ApiError(ErrorCode.TOO_LARGE, "x").headers == {}


@pytest.mark.parametrize(
    ("headers", "retry"),
    [
        ({}, None),
        ({"x-stainless-retry-count": "0", "x-stainless-read-timeout": "600"}, None),
        ({"x-stainless-retry-count": "2", "x-stainless-read-timeout": "60.5"}, Retry(2, 60.5)),
        ({"x-stainless-retry-count": "1", "x-stainless-timeout": "30"}, Retry(1, 30.0)),
        ({"x-stainless-retry-count": "1"}, Retry(1)),
        ({"x-stainless-retry-count": "x", "x-stainless-read-timeout": "nan"}, Retry(1)),
        ({"x-stainless-retry-count": "999", "x-stainless-read-timeout": "1e99"}, Retry(100)),
    ],
)
def test_a_retry_is_what_the_clients_library_says(headers: dict[str, str], retry: Retry | None) -> None:
    assert read_retry(headers) == retry
