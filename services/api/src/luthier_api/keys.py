"""API keys: `sk-lut-<id>-<256 random bits>`, stored as a keyed hash, checked in constant time, cached for seconds."""

import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from luthier_api.domain import Principal, Scope
from luthier_common.kit.migrate import DEFAULT_ORG, DEFAULT_PROJECT
from luthier_common.kit.mongo import Database, Doc

COLLECTION = "api_keys"
MAX_CACHED = 10_000
_KEY = re.compile(r"sk-lut-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal | None
    until_s: float


class KeyRing:
    """Turns a key into the principal that it stands for."""

    def __init__(self, db: Database, pepper: bytes, *, cache_s: float) -> None:
        self._db = db
        self._pepper = pepper
        self._cache_s = cache_s
        self._known: dict[bytes, _Known] = {}

    def digest(self, key: str) -> bytes:
        return hmac.new(self._pepper, key.encode(), hashlib.sha256).digest()

    async def principal(self, key: str) -> Principal | None:
        """Who holds this key; None for an unknown, revoked or expired one."""
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        digest = self.digest(key)
        known = self._known.get(digest)
        if known is None or known.until_s < time.monotonic():
            known = _Known(await self._look_up(match[1], digest), time.monotonic() + self._cache_s)
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            self._known[digest] = known
        return known.principal

    async def create(
        self, name: str, scopes: frozenset[str], *, org: str = DEFAULT_ORG, project: str = DEFAULT_PROJECT
    ) -> str:
        """A new key. It can be read here and never again."""
        key_id = secrets.token_hex(6)
        key = f"sk-lut-{key_id}-{secrets.token_urlsafe(32)}"
        row: Doc = {
            "_id": key_id,
            "digest": self.digest(key),
            "name": name,
            "org": org,
            "project": project,
            "owner": f"key-{key_id}",
            "scopes": sorted(scopes),
            "revoked": False,
            "expires_at": None,
        }
        await self._db[COLLECTION].update_one(
            {"_id": key_id},
            [{"$replaceWith": {"$mergeObjects": [{"$literal": row}, {"created_at": "$$NOW"}]}}],
            upsert=True,
        )
        return key

    async def _look_up(self, key_id: str, digest: bytes) -> Principal | None:
        valid = {"$or": [{"expires_at": None}, {"$expr": {"$gt": ["$expires_at", "$$NOW"]}}]}
        row = await self._db[COLLECTION].find_one({"_id": key_id, "revoked": False, **valid})
        if row is None or not hmac.compare_digest(bytes(row["digest"]), digest):
            return None
        org = await self._db["orgs"].find_one({"_id": row["org"]})
        return Principal(
            key_id=key_id,
            org=row["org"],
            org_name=org["name"] if org else row["org"],
            project=row["project"],
            owner=row["owner"],
            scopes=frozenset(row["scopes"]),
        )


def read_pepper(home: Path) -> bytes:
    """The secret below `home` that keys are hashed with; made at the first start."""
    path = home / "pepper"
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path.read_text().strip().encode()


async def ensure_admin_key(ring: KeyRing, db: Database, path: Path) -> bool:
    """Write an admin key to `path` if no key exists yet; whether it did."""
    if await db[COLLECTION].find_one({}, {"_id": 1}):
        return False
    write_secret(path, await ring.create("admin", frozenset({str(Scope.ADMIN)})) + "\n", replace=True)
    return True


def write_secret(path: Path, text: str, *, replace: bool = False) -> None:
    """Make a file that only its owner can read, whole or not at all. Without `replace` the first writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        if replace:
            fresh.replace(path)
        else:
            os.link(fresh, path)
    except FileExistsError:
        return
    finally:
        fresh.unlink(missing_ok=True)
