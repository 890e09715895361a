"""The example dataset is what its generator makes, passes our own checks, and keeps its validation rows unseen."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier_datachecks import Limits, check_file

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "support-assistant"


def questions(name: str) -> list[str]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in (EXAMPLE / name).read_text().splitlines()]
    return [row["messages"][1]["content"] for row in rows]


@pytest.mark.parametrize(("name", "num_examples"), [("train.jsonl", 240), ("validation.jsonl", 24)])
def test_the_files_pass_the_checks_without_a_finding(name: str, num_examples: int) -> None:
    report = check_file([(EXAMPLE / name).read_bytes()], Limits())
    assert (report.num_examples, report.findings) == (num_examples, [])


def test_no_validation_question_was_trained_on() -> None:
    trained = questions("train.jsonl")
    assert len(set(trained)) == len(trained)
    assert not set(trained) & set(questions("validation.jsonl"))


def test_the_generator_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("facts.toml", "make_dataset.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    runpy.run_path(str(tmp_path / "make_dataset.py"), run_name="__main__")
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes()
