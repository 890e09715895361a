"""`python -m luthier_common.contract.generate [--check | --golden]`: every document that is made from the contract.

Writes `libs/common/schemas/` and what stands between the markers `<!-- generated: NAME -->` and `<!-- end -->` in
`libs/common/README.md` and the root's README. `--check` changes nothing and names what is out of date. `--golden`
writes a golden message for each fact that has none: those of earlier versions are frozen, and read by tests for ever.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from luthier_common.contract.asyncapi import asyncapi, json_schema
from luthier_common.contract.envelope import Envelope
from luthier_common.contract.events import FACTS
from luthier_common.contract.examples import example_message
from luthier_common.contract.tables import facts_table, job_picture, lives, reasons_table, topics_table

CHECKOUT = Path(__file__).resolve().parents[5]
SCHEMAS = Path("libs/common/schemas")
READMES = (Path("libs/common/README.md"), Path("README.md"))
GOLDEN = Path("tests/contract/golden")
SECTIONS = {
    "topics": topics_table,
    "facts": facts_table,
    "lives": lives,
    "job life": job_picture,
    "failure reasons": reasons_table,
}
_MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents(root: Path) -> dict[Path, str]:
    """Every generated file with what it should hold."""
    schemas = {name: json_schema(shape) for name, shape in FACTS.items()}
    schemas |= {"envelope": json_schema(Envelope), "asyncapi": asyncapi()}
    found = {root / SCHEMAS / f"{name}.json": _json(schema) for name, schema in schemas.items()}
    for path in (root / readme for readme in READMES):
        if path.is_file():
            found[path] = fill(path.read_text(encoding="utf-8"))
    return found


def fill(text: str) -> str:
    """The text with its marked sections made anew; a name that is not ours is left alone."""

    def anew(match: re.Match[str]) -> str:
        make = SECTIONS.get(match["name"])
        return f"{match[1]}\n{make()}\n\n{match[3]}" if make else match[0]

    return _MARKED.sub(anew, text)


def stale(root: Path) -> list[Path]:
    """Files that are not as they should be, and schemas of facts that no longer exist."""
    wanted = documents(root)
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return [*changed, *_strangers(root, wanted)]


def write(root: Path) -> list[Path]:
    """Brings every file up to date; answers which had to be changed."""
    wanted, changed = documents(root), stale(root)
    for path in changed:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return changed


def write_golden(root: Path) -> list[Path]:
    """Writes the golden message of each fact that has none; never changes one."""
    made = []
    for name, shape in FACTS.items():
        path = root / GOLDEN / f"{name}.json"
        if not path.exists():
            envelope, headers = example_message(shape)
            message = {"headers": {key: text.decode() for key, text in headers}, "value": json.loads(envelope.value())}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_json(message), encoding="utf-8")
            made.append(path)
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m luthier_common.contract.generate", description=__doc__)
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="the checkout")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="change nothing; fail when something is out of date")
    what.add_argument("--golden", action="store_true", help="write golden messages for facts that have none")
    options = parser.parse_args(arguments)
    if not (options.root / SCHEMAS.parent).is_dir():
        sys.stderr.write(f"{options.root} is not a checkout of Luthier\n")
        return 2
    act, word = (write_golden, "made") if options.golden else (write, "written")
    changed = stale(options.root) if options.check else act(options.root)
    for path in changed:
        sys.stdout.write(f"{'out of date' if options.check else word}: {path.relative_to(options.root)}\n")
    return 1 if options.check and changed else 0


def _strangers(root: Path, wanted: dict[Path, str]) -> list[Path]:
    return [path for path in sorted((root / SCHEMAS).glob("*.json")) if path not in wanted]


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
