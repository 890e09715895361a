"""The stream: chunks in, rows and findings out, in the order of the lines."""

from collections.abc import Iterable, Iterator
from itertools import chain

from luthier_datachecks.chat import check_example, roles_of
from luthier_datachecks.codes import CODES
from luthier_datachecks.fast import accept
from luthier_datachecks.findings import Finding, Limits, Problem, Row
from luthier_datachecks.lines import split_lines
from luthier_datachecks.parse import parse_line

BOM = b"\xef\xbb\xbf"
_SNIFFED_BYTES = 8
_MAGICS = (
    (b"\x1f\x8b", "compressed_file"),
    (b"PK\x03\x04", "compressed_file"),
    (b"\x28\xb5\x2f\xfd", "compressed_file"),
    (b"BZh", "compressed_file"),
    (b"\xfd7zXZ\x00", "compressed_file"),
    (b"PAR1", "unsupported_file_type"),
    (b"\xff\xfe", "unsupported_file_type"),
    (b"\xfe\xff", "unsupported_file_type"),
)


def check_lines(chunks: Iterable[bytes], limits: Limits | None = None) -> Iterator[Finding | Row]:
    """A `Row` for each row that can be trained on, a `Finding` for each problem, in the order of the lines.

    A row with warnings only gives both, findings first. Findings about the file as a whole have no line; those that
    need the number of examples come last. A line counts as an example when it is not blank, right or wrong.
    """
    bounds = limits or Limits()
    head, stream = _sniff(iter(chunks))
    magic = next((code for magic, code in _MAGICS if head.startswith(magic)), None)
    if magic is not None:
        yield Problem(magic).at(None, 0)
        return
    num_examples = 0
    for found in _check_stream(stream, len(BOM) if head.startswith(BOM) else 0, bounds):
        if isinstance(found, int):
            num_examples += found
        else:
            yield found
    yield from _check_count(num_examples, bounds)


def _sniff(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of the file, and the stream without its byte order mark."""
    head = b""
    while len(head) < _SNIFFED_BYTES:
        chunk = next(chunks, None)
        if chunk is None:
            break
        head += chunk
    return head, chain([head.removeprefix(BOM)], chunks)


def _check_stream(chunks: Iterator[bytes], offset: int, limits: Limits) -> Iterator[Finding | Row | int]:
    """Rows and findings; at the end, as a plain number, how many lines were not blank."""
    number, num_blank, blank = 0, 0, Blank()
    for batch in split_lines(chunks, limits.max_line_bytes):
        for line in batch:
            number += 1
            if isinstance(line, bytes) and (roles := accept(line)):
                if blank.count:
                    yield from blank.flush()
                yield Row(line=number, byte_offset=offset, data=line, roles=roles)
                offset += len(line) + 1
                continue
            if isinstance(line, bytes) and not line.strip():
                blank.add(number, offset)
                num_blank += 1
            else:
                yield from blank.flush()
                yield from _judge(line, number, offset, limits)
            offset += (line if isinstance(line, int) else len(line)) + 1
    yield number - num_blank


class Blank:
    """A run of blank lines: a finding when a row follows, nothing at the end of the file."""

    def __init__(self) -> None:
        self.count, self._line, self._offset = 0, 0, 0

    def add(self, line: int, offset: int) -> None:
        """One more blank line."""
        if not self.count:
            self._line, self._offset = line, offset
        self.count += 1

    def flush(self) -> Iterator[Finding]:
        """The finding for the run, if there is one."""
        if self.count:
            message = "The line is blank; it is skipped." if self.count == 1 else f"{self.count} lines are blank."
            yield Problem("blank_line", message=message).at(self._line, self._offset)
        self.count = 0


def _judge(line: bytes | int, number: int, offset: int, limits: Limits) -> Iterator[Finding | Row]:
    if isinstance(line, int):
        message = f"The line has {line} bytes, but may have at most {limits.max_line_bytes}."
        yield Problem("line_too_long", message=message).at(number, offset)
        return
    example, problems = parse_line(line, limits)
    # Errors apart and first, so that no number of warnings hides that a row is unusable.
    errors: list[Problem] = []
    warnings: list[Problem] = []
    for problem in problems or check_example(example, limits):
        kept = errors if CODES[problem.code].severity == "error" else warnings
        if len(kept) < limits.max_findings_per_line:
            kept.append(problem)
        elif kept is errors:
            break
    yield from (problem.at(number, offset) for problem in (errors + warnings)[: limits.max_findings_per_line])
    if not errors:
        yield Row(line=number, byte_offset=offset, data=line, roles=roles_of(example))


def _check_count(num_examples: int, limits: Limits) -> Iterator[Finding]:
    said = f"{limits.file_role} file has {num_examples} example(s), but must have"
    if num_examples < limits.min_examples:
        message = f"{said} at least {limits.min_examples} examples"
        yield Problem("invalid_n_examples", message=message).at(None, None)
    elif limits.max_examples is not None and num_examples > limits.max_examples:
        message = f"{said} at most {limits.max_examples} examples"
        yield Problem("invalid_n_examples", message=message).at(None, None)
