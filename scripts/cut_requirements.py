"""Cuts requirements/core.txt into what the images install, without tests and embedded servers, and what comes first.

    .venv/bin/python scripts/cut_requirements.py [--check]

Roots are the sections of core.in; what stands below them is read from the installed packages, so run it after setup.
The images are Linux with the Python of .venv's version: markers for other systems are left out.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
SERVICE = ("libs/common", "libs/text", "services/api", "services/registry", "libs/graders")
ENGINE = ("services/trainer", "what torch needs")
BUILD = ("building the rooms",)
INSTALLER = ("installing the rest",)
HEAD = "# Cut from core.txt by scripts/cut_requirements.py: {}\n"
PARTS = {
    "service.txt": (SERVICE, (), "every service that needs no torch, and the ground of those that do."),
    "engine.txt": (ENGINE, SERVICE, "what trainer and inference have on top of service.txt, torch itself apart."),
    "installer.txt": (INSTALLER, (), "what installs the rest."),
    "build.txt": (BUILD, (), "what builds the rooms' wheels."),
}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which of them are stale."""
    blocks, sections = _blocks((FOLDER / "core.txt").read_text()), _sections((FOLDER / "core.in").read_text())
    stale = []
    for name, (roots, without, purpose) in PARTS.items():
        below = _closure(sections, roots) - _closure(sections, without)
        text = HEAD.format(purpose) + "".join(blocks[each] for each in sorted(below) if each in blocks)
        path = FOLDER / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text)
    if stale and "--check" in arguments:
        print(f"stale: {', '.join(stale)}; run scripts/cut_requirements.py")
        return 1
    return 0


def _blocks(text: str) -> dict[str, str]:
    """Each pinned package with its hashes, by name."""
    found = re.findall(r"^(?:[^\s#].*\\\n(?:    --hash.*\n)+)", text, re.MULTILINE)
    return {canonicalize_name(re.split(r"[=\[ ;]", block, maxsplit=1)[0]): block for block in found}


def _sections(text: str) -> dict[str, list[Requirement]]:
    """Direct dependencies by the headline that they stand below."""
    sections: dict[str, list[Requirement]] = {}
    headline = ""
    for line in text.splitlines():
        if line.startswith("# "):
            headline = line.removeprefix("# ")
        elif line.strip():
            sections.setdefault(headline, []).append(Requirement(line.split("#")[0].strip()))
    return sections


def _closure(sections: dict[str, list[Requirement]], roots: tuple[str, ...]) -> set[str]:
    chosen = [headline for headline in sections if headline.startswith(roots)] if roots else []
    waiting = [requirement for headline in chosen for requirement in sections[headline]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in requirement.extras or {""}:
            key = (canonicalize_name(requirement.name), extra)
            if key not in seen:
                seen.add(key)
                waiting += _below(requirement.name, {extra, ""})
    return {name for name, _ in seen}


def _below(name: str, extras: set[str]) -> list[Requirement]:
    try:
        wanted = [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [each for each in wanted if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
