"""Rows to ids for training: what is learnt, what is skipped, what refuses a run."""

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from builders.bases import chat_row, make_tiny_base, write_chat_file
from luthier_common.contract.reasons import FailureReason
from luthier_text import TextBundle, TrainRow
from luthier_trainer.training.data import MAX_GOLDEN_BYTES, TokenRows, read_rows
from luthier_trainer.training.errors import TrainingError

READING = """
import sys
from pathlib import Path
from luthier_text import TextBundle
from luthier_trainer.training.data import read_rows
from luthier_trainer.training.watchdog import Watchdog
directory = Path(sys.argv[1])
text = TextBundle.load(directory / "base")
dog = Watchdog(stall_after_s=0.5, load_s=0.5, on_stall=lambda: print("stalled", flush=True))
print(len(read_rows(directory / "many.jsonl", text, 256, "error", dog.beat_before_files)), "rows")
dog.close()
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    return TextBundle.load(make_tiny_base(tmp_path_factory.mktemp("base")))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_only_the_assistants_tokens_are_learnt(tmp_path: Path, text: TextBundle) -> None:
    rows = read_rows(write(tmp_path / "a", [chat_row("Where?", "Here.", "Be brief.")]), text, 256, "error")
    learnt = [label for label in rows.labels(0) if label != -100]
    assert text.decode(learnt) == "Here."
    assert rows.num_trained == [len(learnt)]
    assert rows.golden[0]["row"]["messages"][-1]["content"] == "Here."


def test_rows_without_an_answer_are_skipped_but_not_all(tmp_path: Path, text: TextBundle) -> None:
    mute = {"messages": [{"role": "user", "content": "Hello"}]}
    rows = read_rows(write(tmp_path / "a", [mute, chat_row("Where?", "Here.")]), text, 256, "error")
    assert len(rows) == 1
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
    assert len(read_rows(path, text, 64, "drop")) == 1


def test_rows_that_are_all_cut_can_still_be_checked_where_they_are_served(tmp_path: Path, text: TextBundle) -> None:
    long, short = chat_row("Where?", "Here. " * 60), chat_row("Where?", "Here.")
    cut = read_rows(write(tmp_path / "a", [long] * 5), text, 64, "truncate").golden
    assert [(golden["max_length"], len(golden["input_ids"])) for golden in cut] == [(64, 64)] * 2
    assert text.check_golden(json.loads(json.dumps(cut))) == []
    cut[0]["input_ids"][7] += 1
    assert len(text.check_golden(cut)) == 1
    (whole,) = read_rows(write(tmp_path / "b", [long, short]), text, 64, "truncate").golden
    assert whole["row"] == short
    assert "max_length" not in whole


def test_rows_keep_their_ids_and_labels_in_a_few_bytes(tmp_path: Path, text: TextBundle) -> None:
    chats = [chat_row("Where?", "Here. " * (1 + number % 9)) for number in range(200)]
    path = write(tmp_path / "a", chats)
    tracemalloc.start()
    try:
        rows = read_rows(path, text, 256, "error")
        rows.golden.clear()
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for number, chat in enumerate(chats):
        made = text.train_row(chat)
        assert isinstance(made, TrainRow)
        assert list(rows.input_ids(number)) == made.input_ids
        assert list(rows.labels(number)) == made.labels
        assert rows.lengths[number] == len(made.input_ids)
    assert num_bytes / sum(rows.lengths) < 16


def test_golden_rows_hold_what_ids_come_from_and_nothing_else(tmp_path: Path, text: TextBundle) -> None:
    """A row may hold anything beside its chat; one that was left out is half of a surrogate pair."""
    chats = [{**chat_row(f"Where is {n}?", "Here."), "tools": None, "source": "x" * 1000 + "\ud800"} for n in range(20)]
    golden = read_rows(write(tmp_path / "a", chats), text, 512, "error").golden
    assert [sorted(entry["row"]) for entry in golden] == [["messages", "tools"]] * 16
    assert text.check_golden(json.loads(json.dumps(golden))) == []


def test_golden_rows_are_never_more_than_verification_reads(tmp_path: Path, text: TextBundle) -> None:
    """Here a message carries the weight, as text that no template shows."""
    heavy, light = chat_row("Where?", "Here."), chat_row("When?", "Now.")
    heavy["messages"][0]["note"] = "x" * (MAX_GOLDEN_BYTES // 2)
    huge = chat_row("Why?", "So.")
    huge["messages"][0]["note"] = "x" * (MAX_GOLDEN_BYTES + 1)
    golden = read_rows(write(tmp_path / "a", [huge, heavy, heavy, light]), text, 64, "error").golden
    assert [entry["row"] for entry in golden] == [heavy]
    assert len(json.dumps(golden)) < 16 << 20
    golden = read_rows(write(tmp_path / "b", [huge, light, light]), text, 64, "error").golden
    assert [entry["row"] for entry in golden] == [light, light]


def test_a_file_that_takes_long_to_read_is_no_stall(tmp_path: Path) -> None:
    """A watchdog that allows half a second for files, over rows that take longer than that together."""
    make_tiny_base(tmp_path / "base")
    write_chat_file(tmp_path / "many.jsonl", 6000)
    command = [sys.executable, "-c", READING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, b"6000 rows\n"), done.stderr


def test_many_rows_are_put_in_order_of_length_at_once() -> None:
    rows = TokenRows()
    for number in range(20_000):
        rows.append([number], [number])
    started_s = time.process_time()
    assert len(sorted(range(len(rows)), key=lambda row: rows.lengths[row])) == 20_000
    assert time.process_time() - started_s < 1


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
