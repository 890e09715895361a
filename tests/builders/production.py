"""What docker-compose.yml, the Dockerfile and the manifests say, read as their engines read it."""

import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from luthier_common.kit.settings import RoomSettings
from luthier_stack.settings import SERVICES

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
MANIFESTS = ROOT / "infra" / "k8s"
NEEDS_KUBECTL = "needs kubectl"
EXAMPLE = {
    "LUTHIER_DEFAULT_BASE": "tiny",
    "LUTHIER_BASE_SOURCES": '{"tiny": "/models/tiny"}',
}
"""What .env must say; everything else has a default."""
OUTSIDE_SETTINGS = {"LUTHIER_SECRETS_DIR", "LUTHIER_LOG_LEVEL", "LUTHIER_LOG_FORMAT"}
"""Variables of ours that are read before there are settings."""
ROOMS = (*SERVICES, "migrate")
MODULES = {"migrate": "luthier_common.kit.migrate"} | {name: f"luthier_{name.replace('-', '_')}" for name in SERVICES}
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


def compose(variables: dict[str, str]) -> dict[str, Any]:
    """The compose file with its variables filled in; KeyError for one that must be set and is not."""
    filled: dict[str, Any] = _filled(yaml.safe_load(COMPOSE.read_text()), variables)
    return filled


def _filled(node: Any, variables: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, variables), node) if isinstance(node, str) else node


def _value(found: re.Match[str], variables: dict[str, str]) -> str:
    name, kind, rest = found.groups()
    if name is None:
        return "$"
    if variables.get(name):
        return variables[name]
    if kind == "-":
        return str(rest)
    raise KeyError(f"{name} must be set: {rest}")


def instructions(stage: str | None = None) -> list[tuple[str, str]]:
    """The Dockerfile's instructions, of one stage if named, each with its arguments on one line."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    found = [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]
    if stage is None:
        return found
    start = next(n for n, (word, rest) in enumerate(found) if word == "FROM" and rest.endswith(f" AS {stage}"))
    end = next((n for n in range(start + 1, len(found)) if found[n][0] == "FROM"), len(found))
    return found[start:end]


def image_env() -> dict[str, str]:
    """What every container of ours finds in its environment before compose or Kubernetes say more."""
    given = " ".join(rest for word, rest in instructions("ground") if word == "ENV")
    return dict(pair.split("=", 1) for pair in shlex.split(given))


def settings_class(room: str) -> type[RoomSettings]:
    """The settings of a room; `migrate` has those of all."""
    if room == "migrate":
        return RoomSettings
    module = importlib.import_module(f"{MODULES[room]}.settings")
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    return next(each for each in own if issubclass(each, RoomSettings))


def unknown_settings(room: str, names: set[str]) -> set[str]:
    """Variables that look like settings of the room and are none. Those of all rooms may belong to one of them."""
    known = {f"LUTHIER_{name.upper()}" for name in settings_class(room).model_fields}
    return {name for name in names if name.startswith("LUTHIER_")} - known - OUTSIDE_SETTINGS


@cache
def manifests(folder: str = "base") -> list[dict[str, Any]]:
    """Every object of a folder of manifests."""
    files = sorted((MANIFESTS / folder).glob("*.yaml"))
    return [
        document
        for file in files
        if file.name != "kustomization.yaml"
        for document in yaml.load_all(file.read_text(), yaml.CSafeLoader)
    ]


@cache
def pods() -> dict[str, dict[str, Any]]:
    """The pod of each room."""
    kinds = {"Deployment", "DaemonSet", "Job"}
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in manifests() if each["kind"] in kinds}


def shared_settings() -> dict[str, str]:
    """The literals of the generated config map."""
    [generator] = yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])
