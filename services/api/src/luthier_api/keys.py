"""API keys: `sk-lut-<id>-<256 random bits>`, stored as a keyed hash, checked in constant time, cached for seconds.

The one place that makes, hashes and checks keys. What a key may do is decided when it is looked up: a key stops when it
is revoked or expired, or when its project is archived; a rotated key's former value lives as long as its grace.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier_api.domain import Principal, Scope
from luthier_common.contract.ids import new_id
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.migrate import DEFAULT_ORG, DEFAULT_PROJECT
from luthier_common.kit.mongo import AFTER, DRIVER_ERRORS, Database, Doc, is_outage

log = logging.getLogger(__name__)
COLLECTION = "api_keys"
MAX_CACHED = 10_000
USED_EVERY_S = 60
"""`last_used_at` is this exact: a write for every request would cost more than the request."""
_KEY = re.compile(r"sk-lut-([0-9a-f]{12}|[0-9a-f]{24})-[A-Za-z0-9_-]{43}")
_IN_TEXT = re.compile(r"sk-lut-([0-9a-f]{12,24})-[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a new key stands for."""

    name: str
    scopes: frozenset[str]
    org: str = DEFAULT_ORG
    project: str = DEFAULT_PROJECT
    expires_in_s: int | None = None
    user: str | None = None
    service_account: str | None = None
    is_strict: bool = False
    rate_limit: int | None = None
    created_by: str | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key as it can be seen once: the value, and the row that stays."""

    value: str
    row: Doc


@dataclass(slots=True)
class _Known:
    """What the last look at a key has shown. Times are monotonic."""

    key_id: str
    digest: bytes
    principal: Principal | None
    until_s: float
    renew_at_s: float
    is_used: bool = False


class KeyRing:
    """Turns a key into the principal that it stands for.

    A key is looked up when it comes first. While it is used it is looked up again before that has aged too much, beside
    the requests, all such keys in one query.
    """

    def __init__(self, db: Database, pepper: bytes, *, cache_s: float) -> None:
        self._db = db
        self._pepper = pepper
        self._salt = secrets.token_bytes(32)
        self._cache_s = cache_s
        self._known: dict[bytes, _Known] = {}
        self._epoch = 0
        self._renewing: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()

    def digest(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.encode(), "sha256")

    async def principal(self, key: str) -> Principal | None:
        """Who holds this key; None for an unknown, revoked or expired one, and where the project is archived."""
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        mark = self._mark(key)
        known = self._known.get(mark)
        now_s = time.monotonic()
        if known is None or known.until_s < now_s:
            epoch = self._epoch
            known = await self._look_up(match[1], self.digest(key))
            if len(self._known) >= MAX_CACHED:
                self._make_room()
            if epoch == self._epoch:
                self._known[mark] = known
        elif known.principal is not None:
            known.is_used = True
            if known.renew_at_s < now_s and self._renewing is None:
                self._renewing = asyncio.create_task(self._renew())
        return known.principal

    def has_seen(self, key: str) -> bool:
        """Whether the key was good when it was last looked up; for deciding whom to look up, never for admitting."""
        known = self._known.get(self._mark(key))
        return known is not None and known.principal is not None

    def _mark(self, key: str) -> bytes:
        """What a key is known by in this process.

        `hmac` lets other threads run first: under load the event loop spent a fourteenth of its time in `digest`.
        """
        return hashlib.blake2b(key.encode(), key=self._salt, digest_size=32).digest()

    def _make_room(self) -> None:
        """Whoever sends many keys that are none does not push out those that are."""
        good = {mark: known for mark, known in self._known.items() if known.principal is not None}
        self._known = good if len(good) <= MAX_CACHED // 2 else {}

    def forget(self) -> None:
        """Look every key up anew: what is being looked up now may be older than the change that the caller made."""
        self._epoch += 1
        for known in self._known.values():
            known.until_s = 0.0

    async def create(
        self, name: str, scopes: frozenset[str], *, org: str = DEFAULT_ORG, project: str = DEFAULT_PROJECT
    ) -> str:
        """A new key that no user owns. It can be read here and never again."""
        return (await self.issue(Grant(name, scopes, org, project))).value

    async def issue(self, grant: Grant, value: str | None = None) -> Issued:
        """A new key, with a value that was made before if one is given. It can be read here and never again."""
        value = value or new_value(new_id("", datetime.now(UTC)))
        key_id = value.split("-")[2]
        row: Doc = {
            "digest": self.digest(value),
            "previous": None,
            "name": grant.name,
            "org": grant.org,
            "project": grant.project,
            "user": grant.user,
            "service_account": grant.service_account,
            "owner": grant.user or grant.service_account or f"key-{key_id}",
            "scopes": sorted(grant.scopes),
            "is_strict": grant.is_strict,
            "rate_limit": grant.rate_limit,
            "created_by": grant.created_by,
            "revoked": False,
            "last_used_at": None,
        }
        stamps = {"created_at": "$$NOW", "expires_at": _after(grant.expires_in_s)}
        made = await self._db[COLLECTION].find_one_and_update(
            {"_id": key_id},
            [{"$set": {name: {"$literal": value} for name, value in row.items()} | stamps}],
            upsert=True,
            return_document=AFTER,
        )
        await failpoint("keys.after_issue")
        assert made is not None
        return Issued(value, made)

    async def rotate(self, match: Mapping[str, Any], key_id: str, keep_old_s: int) -> Issued | None:
        """A new value for a key that has not ended; the one before it is accepted for `keep_old_s` more."""
        value = new_value(key_id)
        kept = {"digest": "$digest", "until": _after(keep_old_s)} if keep_old_s else None
        row = await self._db[COLLECTION].find_one_and_update(
            {**match, "_id": key_id, "revoked": False, **_HAS_NOT_EXPIRED},
            [{"$set": {"previous": kept, "digest": {"$literal": self.digest(value)}, "rotated_at": "$$NOW"}}],
            return_document=AFTER,
        )
        await failpoint("keys.after_rotate")
        self.forget()
        return Issued(value, row) if row else None

    async def revoke(self, match: Mapping[str, Any]) -> int:
        """End every key that matches; in this process at once, in others when their cache has run out."""
        change = [{"$set": {"revoked": True, "revoked_at": "$$NOW", "previous": None}}]
        ended = await self._db[COLLECTION].update_many({**match, "revoked": False}, change)
        await failpoint("keys.after_revoke")
        self.forget()
        return int(ended.modified_count)

    async def _look_up(self, key_id: str, digest: bytes) -> _Known:
        now_s = time.monotonic()
        rows = await self._find([key_id])
        return self._judge(rows.get(key_id), key_id, digest, now_s)

    async def _renew(self) -> None:
        """Look at all keys that were used since the last look at them, and whose time for it has come or comes soon."""
        try:
            epoch, now_s = self._epoch, time.monotonic()
            soon_s = now_s + self._cache_s / 4
            due = {mark: known for mark, known in self._known.items() if known.is_used and known.renew_at_s < soon_s}
            rows = await self._find(sorted({known.key_id for known in due.values()}))
            if epoch == self._epoch:
                for mark, known in due.items():
                    self._known[mark] = self._judge(rows.get(known.key_id), known.key_id, known.digest, now_s)
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("keys could not be looked up ahead of time: %s", type(error).__name__)
        finally:
            self._renewing = None

    async def _find(self, key_ids: Sequence[str]) -> dict[str, Doc]:
        valid = {"_id": {"$in": key_ids}, "revoked": False, **_HAS_NOT_EXPIRED}
        rows = await self._db[COLLECTION].aggregate([{"$match": valid}, *_JOINED]).to_list(None)
        return {row["_id"]: row for row in rows}

    def _judge(self, row: Doc | None, key_id: str, digest: bytes, seen_s: float) -> _Known:
        """What a row that was asked for at `seen_s` says of a value of its key."""
        until_s, renew_at_s = seen_s + self._cache_s, seen_s + self._cache_s / 2
        left_s = self._accepted_for_s(row, digest) if row else 0.0
        if row is None or left_s <= 0 or row["is_archived"] or row["is_orphan"]:
            return _Known(key_id, digest, None, until_s, renew_at_s)
        self._note_use(row)
        principal = Principal(
            key_id=key_id,
            org=row["org"],
            org_name=row.get("org_name") or row["org"],
            project=row["project"],
            owner=row["owner"],
            scopes=frozenset(row["scopes"]) - _withheld(row),
            is_strict=row.get("is_strict", False),
            rate_limit=row.get("rate_limit"),
        )
        return _Known(key_id, digest, principal, min(until_s, time.monotonic() + left_s), renew_at_s)

    def _accepted_for_s(self, row: Doc, digest: bytes) -> float:
        """How much longer this value of the key holds; both values are compared, whichever fits."""
        previous = row.get("previous") or {"digest": b"", "until": row["now"]}
        is_now = hmac.compare_digest(bytes(row["digest"]), digest)
        was_before = hmac.compare_digest(bytes(previous["digest"]), digest)
        ends = [row["expires_at"]] if row.get("expires_at") else []
        if was_before and not is_now:
            ends.append(previous["until"])
        left_s = min(((end - row["now"]).total_seconds() for end in ends), default=self._cache_s + 1)
        return left_s if is_now or was_before else 0.0

    def _note_use(self, row: Doc) -> None:
        """Write down the use beside the request, which does not wait for it."""
        used_at = row.get("last_used_at")
        if used_at is None or (row["now"] - used_at).total_seconds() >= USED_EVERY_S:
            write = asyncio.create_task(self._write_use(row["_id"]))
            self._writes.add(write)
            write.add_done_callback(self._writes.discard)

    async def _write_use(self, key_id: str) -> None:
        try:
            await self._db[COLLECTION].update_one({"_id": key_id}, [{"$set": {"last_used_at": "$$NOW"}}])
        except DRIVER_ERRORS as error:
            log.warning("the use of a key was not noted: %s", type(error).__name__, extra={"key_id": key_id})


_HAS_NOT_EXPIRED: Doc = {"$or": [{"expires_at": None}, {"$expr": {"$gt": ["$expires_at", "$$NOW"]}}]}
_IS_READER: Doc = {"$and": [{"$gt": ["$user", None]}, {"$ne": ["$user_role", "owner"]}]}
_JOINED: list[Doc] = [
    {"$lookup": {"from": "orgs", "localField": "org", "foreignField": "_id", "as": "orgs"}},
    {"$lookup": {"from": "projects", "localField": "project", "foreignField": "_id", "as": "projects"}},
    {"$lookup": {"from": "users", "localField": "user", "foreignField": "_id", "as": "users"}},
    {"$lookup": {"from": "service_accounts", "localField": "service_account", "foreignField": "_id", "as": "accounts"}},
    {"$set": {"member": {"$concat": ["$project", "/", "$user"]}, "user_role": {"$first": "$users.role"}}},
    {"$lookup": {"from": "project_users", "localField": "member", "foreignField": "_id", "as": "memberships"}},
    {
        "$set": {
            "now": "$$NOW",
            "org_name": {"$first": "$orgs.name"},
            "is_archived": {"$gt": [{"$first": "$projects.archived_at"}, None]},
            "is_orphan": {
                "$or": [
                    {"$and": [{"$gt": ["$user", None]}, {"$eq": ["$users", []]}]},
                    {"$and": [_IS_READER, {"$eq": ["$memberships", []]}]},
                    {"$and": [{"$gt": ["$service_account", None]}, {"$eq": ["$accounts", []]}]},
                ]
            },
        }
    },
]
"""A key's row with what else decides about it, in one round trip."""


def _withheld(row: Doc) -> set[str]:
    """Only owners of the organisation administrate it, whatever their keys were made with."""
    return {str(Scope.ADMIN)} if row.get("user") is not None and row.get("user_role") != "owner" else set()


def without_keys(text: str) -> str:
    """The text for a record: of a key that somebody put into it only the id is left."""
    return _IN_TEXT.sub(r"sk-lut-\1-...", text)


def new_value(key_id: str) -> str:
    """A fresh value for the key with this id."""
    return f"sk-lut-{key_id}-{secrets.token_urlsafe(32)}"


def _after(seconds: int | None) -> Doc | None:
    """So many seconds from now in database time; None: never."""
    return None if seconds is None else {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": seconds}}
