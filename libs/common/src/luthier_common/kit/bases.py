"""Base models as rooms get them: verified copies of catalogue bundles, cached below their digest."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection as Some
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from luthier_common.kit.errors import LuthierError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import PART_PREFIX, ObjectStore

COLLECTION = "bases"
LOCK_POLL_S = 0.1
_LOCK_FILE = ".lock"
_HELD_FILE = ".held"
"""Apart from the lock: whoever fetches must never wait for those that use what is there."""
TEXT_FILES = ("tokenizer.json", "chat_template.jinja", "text.json")
"""All that turning rows into tokens needs."""


class BaseMissingError(LuthierError):
    code = "base_missing"


class BundleCorruptError(LuthierError):
    """A stored file does not have the sha256 that its manifest names."""

    code = "artifact_corrupt"


async def find_base(db: Database, name: str) -> Doc | None:
    """The catalogue entry with this name, or else the first with this alias."""
    bases = db[COLLECTION]
    return await bases.find_one({"_id": name}) or await bases.find_one({"aliases": name}, sort=[("_id", 1)])


def bases_called(bases: Iterable[Doc], name: str) -> list[Doc]:
    """The entries that `name` may mean, in the order that `find_base` takes them."""
    called = [base for base in bases if name in (base["_id"], *base.get("aliases", ()))]
    return sorted(called, key=lambda base: (base["_id"] != name, base["_id"]))


async def find_pinned(db: Database, digest: str) -> Doc | None:
    """The catalogue entry as it was with this digest, whatever stands under its name now."""
    base = await db[COLLECTION].find_one({"$or": [{"digest": digest}, {"former.digest": digest}]})
    return None if base is None else version_of(base, digest)


def version_of(base: Doc, digest: str | None) -> Doc | None:
    """An entry as it was with this digest; None when it never had it.

    A replaced bundle stays, under a name of its own: what was trained on it, or is being, means just that one.
    """
    if digest is None or digest == base["digest"]:
        return base
    former = next((one for one in base.get("former", ()) if one["digest"] == digest), None)
    return former and {**base, **former, "_id": f"{base['_id']}@{digest[:12]}", "aliases": []}


async def fetch_base(
    db: Database, objects: ObjectStore, name: str, cache_dir: Path, *, only: Some[str] | None = None
) -> Path:
    """The directory of a base's bundle, downloaded and verified once. `only` names the files that are needed.

    Raises BaseMissingError, BundleCorruptError, or what the object store raises.
    """
    base = await find_base(db, name)
    if base is None:
        raise BaseMissingError(f"no base model {name!r} in the catalogue")
    wanted = [file for file in base["files"] if only is None or file["name"] in only]
    target = cache_dir / str(base["digest"])
    await fetch_files(objects, base["key"], wanted, target)
    return target


async def fetch_files(objects: ObjectStore, key: str, files: list[Doc], target: Path) -> None:
    """Download what `target` lacks of `files` ({name, bytes, sha256}), one process at a time, each file verified.

    Its time of change becomes that of its last use.
    """
    await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
    with suppress(OSError):  # a cache that is complete may be one that nobody can write to
        os.utime(target)
    missing = [file for file in files if not _is_there(target / file["name"], file)]
    if not missing:
        return
    lock = _open_lock(target)
    try:
        while not _is_locked(lock):  # noqa: ASYNC110 - waiting in a thread would take it from the one who downloads
            await asyncio.sleep(LOCK_POLL_S)
        _drop_parts(target)
        for file in missing:
            path = target / file["name"]
            if not _is_there(path, file):
                part = path.with_name(path.name + ".part")
                if await objects.download(key + file["name"], part) != file["sha256"]:
                    part.unlink(missing_ok=True)
                    raise BundleCorruptError(f"{key}{file['name']} does not match its sha256")
                part.replace(path)
                await failpoint("bases.mid_fetch")
    finally:
        os.close(lock)


def keep_last_used(directory: Path, num: int, *, spared: Some[str] = (), unused_for_s: float = 0.0) -> None:
    """Remove what was used longest ago below `directory` until `num` are left.

    Spared are those named, and those that somebody has used within `unused_for_s`.
    """
    if not directory.exists():
        return
    by_use = sorted((_used_at_s(path), path) for path in directory.iterdir())
    for used_at_s, path in by_use[: max(0, len(by_use) - num)]:
        if path.name not in spared and used_at_s <= time.time() - unused_for_s:
            drop_cached(path)


def _used_at_s(path: Path) -> float:
    """When it was last used; what another process of this machine has removed meanwhile comes first."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _drop_parts(target: Path) -> None:
    """Under the lock nobody else writes here: these are of downloads that were killed."""
    for part in target.glob(f"{PART_PREFIX}*"):
        part.unlink(missing_ok=True)


def _open_lock(target: Path, name: str = _LOCK_FILE) -> int:
    return os.open(target / name, os.O_CREAT | os.O_RDWR, 0o600)


def _is_locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def drop_cached(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)


def hold_cached(target: Path) -> int:
    """`drop_unused` leaves this bundle alone until the descriptor is closed. OSError where nobody can write."""
    held = _open_lock(target, _HELD_FILE)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def drop_unused(target: Path) -> bool:
    """Remove a bundle, unless somebody fetches or holds it; whether it is gone."""
    locks = [_open_lock(target, name) for name in (_LOCK_FILE, _HELD_FILE)]
    try:
        if all(map(_is_locked, locks)):
            drop_cached(target)
        return not target.exists()
    finally:
        for lock in locks:
            os.close(lock)


def _is_there(path: Path, file: Doc) -> bool:
    """A cached file appears only after its download was verified, so its size tells."""
    return path.exists() and path.stat().st_size == file["bytes"]
