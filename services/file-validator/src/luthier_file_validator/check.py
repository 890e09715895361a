"""The child: `python -m luthier_file_validator.check SPEC` reads one file within limits and writes its report.

It gets no credentials and no network addresses. Its exit status says how it ended; nothing of a row is ever printed.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from luthier_common.contract.spec import OnOverlength
from luthier_datachecks import Limits
from luthier_file_validator.checks import RowRule, examine
from luthier_text import TextBundle, TextError

CHUNK_BYTES = 1 << 20
EXIT_CRASHED = 70
EXIT_NO_MEMORY = 71
EXIT_BAD_BUNDLE = 72
PR_SET_PDEATHSIG = 1


class CheckSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to read and within which limits."""

    path: str
    report_path: str
    min_examples: int
    max_examples: int | None
    max_findings: int
    memory_bytes: int
    cpu_s: int
    file_role: str = "The"
    bundle: str | None = None
    max_length: int | None = None
    on_overlength: OnOverlength = "error"


def main(argv: list[str]) -> int:
    parent_pid = int(argv[1])
    spec = msgspec.json.decode(Path(argv[0]).read_bytes(), type=CheckSpec)
    _die_with(parent_pid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (spec.cpu_s, spec.cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_AS, (spec.memory_bytes, spec.memory_bytes))
    try:
        bundle = TextBundle.load(Path(spec.bundle)) if spec.bundle is not None else None
    except TextError:
        if spec.max_length is not None:
            return EXIT_BAD_BUNDLE
        # A file is not bad because the default base is; only its number of tokens is unknown.
        bundle = None
    rule = RowRule(spec.max_length, spec.on_overlength) if spec.max_length is not None else None
    report = examine(
        _chunks(Path(spec.path)),
        Limits(min_examples=spec.min_examples, max_examples=spec.max_examples, file_role=spec.file_role),
        bundle=bundle,
        rule=rule,
        max_findings=spec.max_findings,
    )
    Path(spec.report_path).write_bytes(msgspec.json.encode(report))
    return 0


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _die_with(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit(EXIT_CRASHED)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except MemoryError:
        status = EXIT_NO_MEMORY
    # The last resort of a process: its parent turns the status into a verdict.
    except Exception as error:
        sys.stderr.write(type(error).__name__)
        status = EXIT_CRASHED
    os._exit(status)
