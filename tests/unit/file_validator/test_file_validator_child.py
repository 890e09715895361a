"""How a check ended, and whose fault that was."""

import signal
from pathlib import Path

import pytest

from builders.bases import write_chat_file
from luthier_file_validator.check import EXIT_BAD_BUNDLE, EXIT_CRASHED, EXIT_NO_MEMORY, CheckSpec
from luthier_file_validator.checks import CheckReport
from luthier_file_validator.child import crash_of, run_check
from luthier_file_validator.files import in_turn
from luthier_file_validator.verdicts import Crash

GIB = 1 << 30


@pytest.mark.parametrize(
    ("exit_status", "said", "crash"),
    [
        (EXIT_NO_MEMORY, b"", Crash.LIMITS),
        (-signal.SIGXCPU, b"", Crash.LIMITS),
        (-signal.SIGABRT, b"memory allocation of 99 bytes failed", Crash.LIMITS),
        (-signal.SIGABRT, b"terminate called after throwing an instance of 'std::bad_alloc'", Crash.LIMITS),
        (EXIT_BAD_BUNDLE, b"", Crash.BAD_BUNDLE),
        (-signal.SIGKILL, b"", Crash.INTERNAL),
        (-signal.SIGABRT, b"", Crash.INTERNAL),
        (EXIT_CRASHED, b"OSError", Crash.INTERNAL),
    ],
)
def test_only_the_checks_own_limits_are_the_files_fault(exit_status: int, said: bytes, crash: Crash) -> None:
    assert crash_of(exit_status, said) is crash


@pytest.mark.parametrize(("report_path", "outcome"), [("report.json", CheckReport), ("/dev/full", Crash)])
async def test_a_full_disk_is_a_fault_of_the_machine(tmp_path: Path, report_path: str, outcome: type) -> None:
    spec = CheckSpec(
        path=str(write_chat_file(tmp_path / "data.jsonl", 12)),
        report_path=str(tmp_path / report_path),
        min_examples=1,
        max_examples=None,
        max_findings=10,
        memory_bytes=GIB,
        cpu_s=60,
    )
    found = await run_check(spec, tmp_path, wall_s=60.0)
    assert isinstance(found, outcome)
    assert not isinstance(found, Crash) or found is Crash.INTERNAL


def test_files_that_nobody_reads_are_taken_in_turn() -> None:
    assert list(in_turn([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]])) == ["a1", "b1", "c1", "a2", "c2", "a3"]
