"""Generated documents are those of today's code, and the generator never touches what is frozen."""

import ast
import json
import sys
from pathlib import Path

import pytest

from luthier_common.contract import generate
from luthier_common.contract.events import FACTS
from luthier_common.contract.topics import ALL_TOPICS

CONTRACT = Path(generate.__file__).parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "libs" / "common").mkdir(parents=True)
    return tmp_path


def test_documents_are_up_to_date() -> None:
    late = [str(path.relative_to(generate.CHECKOUT)) for path in generate.stale(generate.CHECKOUT)]
    assert not late, "run `make docs` and commit what it changes"


def test_check_changes_nothing_and_names_what_is_late(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--root", str(checkout), "--check"]) == 1
    assert "out of date: libs/common/schemas/JobPlaced.json" in capsys.readouterr().out
    assert not (checkout / "libs/common/schemas").exists()
    assert generate.main(["--root", str(checkout)]) == 0
    assert generate.main(["--root", str(checkout), "--check"]) == 0
    (checkout / "libs/common/schemas/Gone.json").write_text("{}")
    assert generate.main(["--root", str(checkout), "--check"]) == 1
    assert generate.main(["--root", str(checkout)]) == 0
    assert not (checkout / "libs/common/schemas/Gone.json").exists()


def test_golden_messages_that_exist_are_never_changed(checkout: Path) -> None:
    assert generate.main(["--root", str(checkout), "--golden"]) == 0
    golden = checkout / "tests/contract/golden"
    assert {path.stem for path in golden.iterdir()} == set(FACTS)
    (golden / "JobPlaced.json").write_text("frozen")
    (golden / "JobCreated.json").unlink()
    generate.main(["--root", str(checkout), "--golden"])
    assert (golden / "JobPlaced.json").read_text() == "frozen"
    assert (golden / "JobCreated.json").exists()


def test_text_around_markers_and_foreign_markers_stay() -> None:
    text = "above\n<!-- generated: job life -->\nold\n<!-- end -->\nbelow\n<!-- generated: other -->\nx\n<!-- end -->\n"
    filled = generate.fill(text)
    assert filled.startswith("above\n<!-- generated: job life -->\n\n```mermaid\nstateDiagram-v2\n")
    assert filled.endswith("<!-- end -->\nbelow\n<!-- generated: other -->\nx\n<!-- end -->\n")
    assert generate.fill(filled) == filled


def test_elsewhere_than_in_a_checkout_nothing_is_written(tmp_path: Path) -> None:
    assert generate.main(["--root", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    document = json.loads((generate.CHECKOUT / generate.SCHEMAS / "asyncapi.json").read_text())
    assert {channel["address"] for channel in document["channels"].values()} == {topic.name for topic in ALL_TOPICS}

    def references(part: object) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [found for value in part.values() for found in references(value)]
        return [found for value in part for found in references(value)] if isinstance(part, list) else []

    for reference in references(document):
        here = document
        for name in reference.removeprefix("#/").split("/"):
            here = here[name]
    told = [name for channel in document["channels"].values() for name in channel["messages"]]
    assert sorted(told) == sorted([*FACTS, "DeadLetter"])


def test_the_contract_needs_pydantic_and_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "pydantic"}
    for path in CONTRACT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed or name.startswith("luthier_common.contract"), (path.name, name)
