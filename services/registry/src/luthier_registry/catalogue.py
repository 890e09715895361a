"""Base models get into the catalogue: found here, converted by a child process, uploaded once, content-addressed."""

import asyncio
import hashlib
import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectStore
from luthier_registry.bundle import MANIFEST_FILE, BundleManifest, damaged_files, file_sha256, read_manifest
from luthier_registry.claims import Claims
from luthier_registry.default_base import SMOLLM2_NAME, find_smollm2_gguf
from luthier_registry.domain import aliases_of
from luthier_registry.errors import BaseImportError
from luthier_registry.settings import RegistrySettings
from luthier_registry.sources import Source, SourceKind, errors_told, identity_of, kind_of, look_at
from luthier_registry.store import Store

log = logging.getLogger(__name__)
REST_S = 300.0
"""A source that failed is tried again after this: it may have been a full disk or a killed child."""
SYSTEM = {"org": "system", "project": "system"}
_UNFIT_FOR_PATHS = re.compile(r"[^A-Za-z0-9._-]+")
_CODED = re.compile(r"(?P<code>[a-z]+_[a-z_]+): (?P<message>.+)")
_CHILD_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Catalogue:
    def __init__(self, store: Store, objects: ObjectStore, claims: Claims, settings: RegistrySettings) -> None:
        self._store = store
        self._objects = objects
        self._claims = claims
        self._settings = settings
        self._done: set[Source] = set()
        self._refused: dict[Source, BaseImportError] = {}
        self._rests_until_s: dict[Source, float] = {}

    async def look(self) -> None:
        """Make sure that every base that has a source is in the catalogue."""
        for source in self._sources():
            if source in self._done or self._rests_until_s.get(source, 0.0) > time.monotonic():
                continue
            try:
                await self._take(source)
            except BaseImportError as error:
                self._refused[source] = error
                self._rests_until_s[source] = time.monotonic() + REST_S
                what = "LUTHIER_BASE_SOURCES: %s from %s is not a base model: %s: %s"
                log.error(what, source.name, source.path, error.code, error, extra={"base": source.name})  # noqa: TRY400 (the cause is said)

    async def missing(self) -> str | None:
        """Why the default base does not answer yet, or None."""
        name = self._settings.default_base
        if await self._store.read_base(name) is not None:
            return None
        if (source := self._default_source()) is None:
            return f"no source for the base model {name}: see LUTHIER_BASE_SOURCES"
        if (refused := self._refused.get(source)) is None:
            return f"the base model {name} is being prepared"
        return f"{refused.code}: {refused}"

    def trouble(self) -> str | None:
        """The code of what keeps the default base from being prepared, which anybody may see; None while it is."""
        if (source := self._default_source()) is None:
            return "source_missing"
        return self._refused[source].code if source in self._refused else None

    def _default_source(self) -> Source | None:
        name = self._settings.default_base
        return next((source for source in self._sources() if source.name == name), None)

    def _sources(self) -> list[Source]:
        paths = dict(self._settings.base_sources)
        if self._settings.default_base == SMOLLM2_NAME and SMOLLM2_NAME not in paths:
            found = find_smollm2_gguf()
            paths |= {SMOLLM2_NAME: found} if found else {}
        return [look_at(name, path) for name, path in sorted(paths.items())]

    async def _take(self, source: Source) -> None:
        async with self._claims.hold(f"base/{source.name}") as is_ours:
            if not is_ours:
                return
            kind = await asyncio.to_thread(kind_of, source.path)
            if kind is SourceKind.BUNDLE:
                await self._publish(source, source.path)
            else:
                revision, converter = await asyncio.to_thread(identity_of, source.path, kind)
                if not await self._is_there(source.name, revision, converter):
                    bundle = self._bundle_path(source.name, revision, converter)
                    await asyncio.to_thread(_drop_unfinished, bundle)
                    await _convert(source, bundle)
                    try:
                        await self._publish(source, bundle)
                    except BaseImportError:
                        # Its links lead to files that have changed or gone: the next attempt makes new ones.
                        shutil.rmtree(bundle, ignore_errors=True)
                        raise
                    await asyncio.to_thread(shutil.rmtree, bundle, ignore_errors=True)
            self._done.add(source)

    async def _is_there(self, name: str, revision: str, converter: str) -> bool:
        """Whether the catalogue holds what this source gives, bytes included."""
        base = await self._store.read_base(name)
        if base is None or (base["revision"], base["converter"]) != (revision, converter):
            return False
        return await self._objects.head(base["key"] + MANIFEST_FILE) is not None

    def _bundle_path(self, name: str, revision: str, converter: str) -> Path:
        by = hashlib.sha256(converter.encode()).hexdigest()[:8]
        return self._settings.home / "registry" / f"{_UNFIT_FOR_PATHS.sub('-', name)}-{revision[:16]}-{by}"

    async def _publish(self, source: Source, bundle: Path) -> None:
        """Upload a bundle (its manifest last), note it in the ledger, then name it in the catalogue."""
        with errors_told(bundle):
            manifest = _read_manifest(bundle)
            digest = await asyncio.to_thread(file_sha256, bundle / MANIFEST_FILE)
        key = f"bases/{digest}/"
        if await self._objects.head(key + MANIFEST_FILE) is None:
            with errors_told(bundle):
                damaged = await asyncio.to_thread(damaged_files, bundle, manifest)
            if damaged:
                raise BaseImportError("bundle_damaged", f"{damaged[0]} is not as {MANIFEST_FILE} says")
            await self._upload(bundle, key, manifest)
        entry = _entry(source.name, manifest, key, digest, (bundle / MANIFEST_FILE).stat().st_size)
        entry["aliases"] = await self._settle_aliases(source.name)
        num_bytes = sum(file["bytes"] for file in entry["files"])
        await self._store.record(SYSTEM, key, f"base/{digest}", sha256=digest, num_bytes=num_bytes)
        await failpoint("registry.before_base")
        await self._store.write_base(entry)
        log.info("in the catalogue", extra={"base": source.name, "digest": digest})

    async def _settle_aliases(self, name: str) -> list[str]:
        """By which a base may be asked for too. A name goes before an alias, and the older alias before the newer."""
        if await self._store.free_name(name):
            log.warning("the alias of another base is a base of its own now", extra={"base": name})
        others = await self._store.names_of_other_bases(name)
        if taken := [alias for alias in aliases_of(name) if alias in others]:
            log.warning("another base answers to an alias already", extra={"base": name, "aliases": taken})
        return [alias for alias in aliases_of(name) if alias not in others]

    async def _upload(self, bundle: Path, key: str, manifest: BundleManifest) -> None:
        for file in manifest.files:
            stored = await self._objects.upload(bundle / file.name, key + file.name)
            if stored.sha256 != file.sha256:
                raise BaseImportError("bundle_damaged", f"{file.name} changed while it was read")
            await failpoint("registry.mid_upload")
        await self._objects.upload(bundle / MANIFEST_FILE, key + MANIFEST_FILE)


def _entry(name: str, manifest: BundleManifest, key: str, digest: str, manifest_bytes: int) -> Doc:
    files = [file.model_dump(mode="json") for file in manifest.files]
    return {
        "_id": name,
        "digest": digest,
        "key": key,
        "files": [*files, {"name": MANIFEST_FILE, "bytes": manifest_bytes, "sha256": digest}],
        "context_length": manifest.context_length,
        "architecture": manifest.architecture,
        "num_parameters": manifest.num_parameters,
        "licence": manifest.licence,
        "source": manifest.source.model_dump(mode="json"),
        "revision": manifest.revision,
        "converter": manifest.converter,
    }


def _read_manifest(bundle: Path) -> BundleManifest:
    try:
        manifest = read_manifest(bundle)
    except ValidationError as error:
        raise BaseImportError("bundle_damaged", f"{MANIFEST_FILE} cannot be read") from error
    if manifest is None:
        raise BaseImportError("bundle_damaged", f"{bundle.name} has no {MANIFEST_FILE}")
    return manifest


def _drop_unfinished(bundle: Path) -> None:
    """What a killed conversion of this very bundle left beside it, as large as the bundle itself."""
    for left in bundle.parent.glob(f".{bundle.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


async def _convert(source: Source, bundle: Path) -> None:
    """Convert in a process of its own: it needs memory once, and no credentials."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in _CHILD_VARIABLES if name in os.environ}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "luthier_registry.base_import", str(source.path), str(bundle), "--name", source.name,
        "--parent-pid", str(os.getpid()),
        env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        found = _CODED.fullmatch(last)
        raise BaseImportError(
            found["code"] if found else "conversion_failed",
            (found["message"] if found else last)[:500] or f"the conversion ended with {child.returncode}",
        )
