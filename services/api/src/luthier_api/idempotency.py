"""When two requests are the same one, and which answers are kept for a repetition. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from luthier_api.errors import ApiError, ErrorCode
from luthier_common.contract.ids import new_id
from luthier_common.kit.clock import Clock

MAX_KEY = 255
MAX_KEPT_BYTES = 64 * 1024
MAX_PARTS = 16
"""No form that the API takes has more; one that does is not remembered part by part."""
NOT_FINAL = frozenset({401, 403, 408, 409, 425, 429, 499})
"""Refusals that may be otherwise a moment later; nothing was done, so the repetition is tried anew."""
SECRET_MARK = b"sk-lut-"
JSON_TYPE = b"application/json"
MAX_RETRIES = 100
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids for what one request makes: the same ones when it is executed again for its Idempotency-Key."""

    core: str | None
    """What was reserved with the key; None without one."""
    clock: Clock

    def new(self, prefix: str) -> str:
        return new_id(prefix, self.clock.now()) if self.core is None else f"{prefix}{self.core}"


class Fingerprint(Protocol):
    """What a body is known by. The same request sent again has the same one."""

    def feed(self, chunk: bytes) -> None: ...

    def digest(self) -> str | None:
        """Asked when the body has ended; None if it is not what it should be."""
        ...


class BodyFingerprint:
    """Of a body as it is, byte by byte."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        self._sha256.update(chunk)

    def digest(self) -> str | None:
        return self._sha256.hexdigest()


class FormFingerprint:
    """Of a multipart body: its parts' names, file names and contents in the order of the names.

    The boundary is another one at each sending, and so the bytes differ.
    """

    def __init__(self, boundary: str) -> None:
        self._parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._parts: list[tuple[str, str, str]] = []
        self._is_broken = False
        self._head: MultipartSegment | None = None
        self._sha256 = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        if self._is_broken or not chunk:
            return
        try:
            for event in self._parser.parse(chunk):
                self._take(event)
        except MultipartError:
            self._is_broken = True

    def digest(self) -> str | None:
        try:
            self._parser.close()
        except MultipartError:
            self._is_broken = True
        if self._is_broken:
            return None
        listed = "\n".join(f"{name!r} {filename!r} {sha256}" for name, filename, sha256 in sorted(self._parts))
        return hashlib.sha256(listed.encode()).hexdigest()

    def _take(self, event: Any) -> None:
        if event is None:
            assert self._head is not None
            self._parts.append((self._head.name, self._head.filename or "", self._sha256.hexdigest()))
        elif isinstance(event, MultipartSegment):
            self._head, self._sha256 = event, hashlib.sha256()
        else:
            self._sha256.update(event)


def fingerprint_for(content_type: str) -> Fingerprint:
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary")
    return FormFingerprint(boundary) if kind == "multipart/form-data" and boundary else BodyFingerprint()


def read_key(value: bytes | None) -> str | None:
    """The Idempotency-Key of a request; ApiError when it is longer than one may be."""
    if not value:
        return None
    if len(value) > MAX_KEY:
        message = f"An Idempotency-Key has at most {MAX_KEY} characters."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="Idempotency-Key")
    return value.decode("latin-1")


def reservation_name(owner: Sequence[str | None], route: str, key: str) -> str:
    """Where the request is reserved. Nobody else's request has this name, whatever the parts hold."""
    return hashlib.sha256(repr((*owner, route, key)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Retry:
    """A client's library says that it repeats a request: how often it has, and how long it waits for an answer."""

    number: int
    patience_s: float = DAY_S


def read_retry(headers: Mapping[str, str]) -> Retry | None:
    """What the clients made by Stainless say of themselves; None of a first sending."""
    count = headers.get("x-stainless-retry-count") or "0"
    if count == "0":
        return None
    number = int(count) if count.isdecimal() and len(count) < 5 else 1
    return Retry(min(number, MAX_RETRIES), read_patience(headers) or DAY_S)


def read_patience(headers: Mapping[str, str]) -> float | None:
    """How long such a client waits for an answer, in seconds; None where it does not say, or nothing believable."""
    with suppress(ValueError):
        patience_s = float(headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout") or 0)
        return patience_s if 1 <= patience_s <= DAY_S else None
    return None


def is_final(status: int) -> bool:
    """Whether a repetition gets this answer again, rather than being tried anew."""
    return status < 500 and status not in NOT_FINAL


def is_kept(headers: Mapping[bytes, bytes], body: bytes) -> bool:
    """Whether the answer can be kept: small, JSON, and without an API key in it."""
    is_json = headers.get(b"content-type", b"").partition(b";")[0].strip() == JSON_TYPE
    return is_json and len(body) <= MAX_KEPT_BYTES and SECRET_MARK not in body


def not_kept() -> ApiError:
    """The answer to a repetition whose first answer is not there any more."""
    code = ErrorCode.IDEMPOTENCY_NOT_KEPT
    return ApiError(code, code.sentence, param="Idempotency-Key")


def is_reused(known: str | None, sent: str | None) -> bool:
    """Whether the key came before with another body."""
    return known is not None and sent is not None and known != sent
