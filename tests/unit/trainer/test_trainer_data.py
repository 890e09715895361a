"""Rows to ids for training: what is learnt, what is skipped, what refuses a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.bases import chat_row, make_tiny_base
from luthier_common.contract.reasons import FailureReason
from luthier_text import TextBundle
from luthier_trainer.training.data import read_rows
from luthier_trainer.training.errors import TrainingError


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    return TextBundle.load(make_tiny_base(tmp_path_factory.mktemp("base")))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_only_the_assistants_tokens_are_learnt(tmp_path: Path, text: TextBundle) -> None:
    rows = read_rows(write(tmp_path / "a", [chat_row("Where?", "Here.", "Be brief.")]), text, 256, "error")
    learnt = [label for label in rows.labels[0] if label != -100]
    assert text.decode(learnt) == "Here."
    assert rows.num_trained == [len(learnt)]
    assert rows.golden[0]["row"]["messages"][-1]["content"] == "Here."


def test_rows_without_an_answer_are_skipped_but_not_all(tmp_path: Path, text: TextBundle) -> None:
    mute = {"messages": [{"role": "user", "content": "Hello"}]}
    rows = read_rows(write(tmp_path / "a", [mute, chat_row("Where?", "Here.")]), text, 256, "error")
    assert len(rows.input_ids) == 1
    assert rows.num_skipped == 1
    with pytest.raises(TrainingError) as caught:
        read_rows(write(tmp_path / "b", [mute]), text, 256, "error")
    assert caught.value.reason == FailureReason.NOTHING_TO_LEARN
    assert not caught.value.is_retryable


def test_a_long_row_refuses_the_run_or_is_cut_or_dropped(tmp_path: Path, text: TextBundle) -> None:
    path = write(tmp_path / "a", [chat_row("Where?", "Here. " * 30), chat_row("Where?", "Here.")])
    with pytest.raises(TrainingError, match="line 1") as caught:
        read_rows(path, text, 64, "error")
    assert caught.value.reason == FailureReason.ROW_TOO_LONG
    assert max(read_rows(path, text, 64, "truncate").lengths) == 64
    assert len(read_rows(path, text, 64, "drop").input_ids) == 1


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"messages": 5}\n'])
def test_a_bad_line_is_named_without_its_text(tmp_path: Path, text: TextBundle, content: str) -> None:
    (tmp_path / "a").write_text(json.dumps(chat_row("a", "b")) + "\n" + content)
    with pytest.raises(TrainingError, match="line 2") as caught:
        read_rows(tmp_path / "a", text, 64, "error")
    assert caught.value.reason == FailureReason.INVALID_FILE


def test_a_file_that_is_gone_has_its_own_reason(tmp_path: Path, text: TextBundle) -> None:
    with pytest.raises(TrainingError) as caught:
        read_rows(tmp_path / "none", text, 64, "error")
    assert caught.value.reason == FailureReason.FILE_MISSING
