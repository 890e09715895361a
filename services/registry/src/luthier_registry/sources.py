"""What `LUTHIER_BASE_SOURCES` may name, and what tells one state of it from another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from luthier_registry.bundle import MANIFEST_FILE, file_sha256
from luthier_registry.default_base import CONVERTER, HF_CONVERTER
from luthier_registry.errors import BaseImportError
from luthier_registry.hf_read import CONFIG_FILE, hash_files, list_files, source_of

Signature = tuple[tuple[str, int, int, int], ...]


class SourceKind(Enum):
    """What becomes of a source: a bundle is published as it is, the others are made into one."""

    BUNDLE = "bundle"
    GGUF = "gguf"
    DIRECTORY = "directory"


@dataclass(frozen=True)
class Source:
    """One entry of `LUTHIER_BASE_SOURCES`."""

    name: str
    path: Path
    signature: Signature
    """Names, sizes, times and modes of its files; another one means another source."""


def look_at(name: str, path: Path) -> Source:
    """A source as it is now; one that is missing is a source too, and has no files."""
    try:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(each.name, each.stat()) for each in found if each.is_file()]
    except OSError:
        states = []
    signature = tuple((each, state.st_size, state.st_mtime_ns, state.st_mode) for each, state in states)
    return Source(name, path, signature)


def kind_of(path: Path) -> SourceKind:
    """What a path is; `BaseImportError` for anything that no base is made of."""
    with errors_told(path):
        if (path / MANIFEST_FILE).is_file():
            return SourceKind.BUNDLE
        if (path / CONFIG_FILE).is_file():
            return SourceKind.DIRECTORY
        if path.is_file():
            return SourceKind.GGUF
        if not path.exists():
            raise BaseImportError("source_missing", f"{path} does not exist where the registry runs")
    raise BaseImportError(
        "source_unknown", f"{path} is no GGUF file, and has neither {CONFIG_FILE} (Hugging Face) nor {MANIFEST_FILE}"
    )


def identity_of(path: Path, kind: SourceKind) -> tuple[str, str]:
    """Revision and converter: the same pair is the same base. Reads every byte."""
    with errors_told(path):
        if kind is SourceKind.GGUF:
            return file_sha256(path), CONVERTER
        return source_of(path, hash_files(path, list_files(path))).sha256, HF_CONVERTER


@contextmanager
def errors_told(path: Path) -> Iterator[None]:
    """What the system refuses while a base is made of `path` becomes a `BaseImportError` that names the file."""
    try:
        yield
    except OSError as error:
        raise BaseImportError("io_error", _said(error, path)) from error


def _said(error: OSError, path: Path) -> str:
    told = f"{error.strerror}: {error.filename or f'at work on {path}'}"
    return f"{told} (as user {os.geteuid()})" if isinstance(error, PermissionError) else told
