"""What the checks say: limits in, rows and findings out."""

from dataclasses import dataclass

import msgspec

from luthier_datachecks.codes import CODES, Severity

MIB = 1 << 20
MAX_PATH = 200


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a file; `max_examples` None means no bound. `file_role` is the first word of messages."""

    max_line_bytes: int = 8 * MIB
    max_depth: int = 64
    max_keys: int = 10_000
    max_tools: int = 128
    min_examples: int = 10
    max_examples: int | None = None
    max_findings_per_line: int = 20
    file_role: str = "Training"


class Finding(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One thing that is wrong or doubtful. `line` counts from 1 and is None for the file as a whole.

    `path` is like `messages[1].role`, empty for the whole line, and cut after `MAX_PATH` characters. Nothing here
    repeats the content of the row.
    """

    line: int | None
    byte_offset: int | None
    path: str
    code: str
    severity: Severity
    message: str


class Row(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A row that can be trained on: its line as bytes (no line ending) and the roles of its messages in order."""

    line: int
    byte_offset: int
    data: bytes
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """A finding before it knows its line."""

    code: str
    path: str = ""
    message: str = ""

    def at(self, line: int | None, byte_offset: int | None) -> Finding:
        """The finding for a line; without a message of its own it says the sentence of its code."""
        code = CODES[self.code]
        return Finding(
            line=line,
            byte_offset=byte_offset,
            path=self.path[:MAX_PATH],
            code=self.code,
            severity=code.severity,
            message=self.message or code.sentence,
        )
