"""What an installation makes at its first start: the secret that keys are hashed with, and its operator's key."""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from luthier_api.domain import Scope
from luthier_api.keys import COLLECTION, Grant, KeyRing, new_value
from luthier_common.contract.ids import new_id
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.migrate import DEFAULT_ORG
from luthier_common.kit.mongo import Database


def read_pepper(home: Path) -> bytes:
    """The secret below `home` that keys are hashed with; made at the first start."""
    path = home / "pepper"
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path.read_text().strip().encode()


async def ensure_admin_key(ring: KeyRing, db: Database, path: Path) -> bool:
    """Write an admin key of the default organisation to `path` if that has no key yet; whether it did.

    The file comes first: a row whose value a crash kept from being written would lock everybody out.
    """
    if await db[COLLECTION].find_one({"org": DEFAULT_ORG}, {"_id": 1}):
        return False
    write_secret(path, (value := new_value(new_id("", datetime.now(UTC)))) + "\n", replace=True)
    await failpoint("keys.before_admin_row")
    await ring.issue(Grant("admin", frozenset({str(Scope.ADMIN)})), value)
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
