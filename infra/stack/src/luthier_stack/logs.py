"""Log lines of the parts: one file each below the home, and one common form on the terminal."""

import asyncio
import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

MAX_LOG_BYTES = 10 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024
_NAME_WIDTH = 14
_SHOWN_APART = {"at", "level", "service", "logger", "message", "color_message"}


def rotate(path: Path) -> None:
    """Keep one older file once the present one is large."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))


def open_for_append(path: Path) -> int:
    """A descriptor that a child can write to, readable by the owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rotate(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def tail(path: Path, num_lines: int = 8) -> str:
    """The last lines of a log file, for an error message."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line[:400]}" for line in lines[-num_lines:])


def show(name: str, text: str) -> None:
    """One line on the terminal: time, part, text."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sys.stdout.write(f"{now} {name:<{_NAME_WIDTH}} | {text}\n")
    sys.stdout.flush()


async def copy_lines(name: str, stream: asyncio.StreamReader, path: Path) -> None:
    """Copy a child's output to its file and to the terminal, line by line, until the child closes it."""
    pending = b""
    while chunk := await stream.read(MAX_LINE_BYTES):
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > MAX_LINE_BYTES:
            lines, pending = [*lines, pending], b""
        _write(name, lines, path)
    if pending:
        _write(name, [pending], path)


def _write(name: str, lines: list[bytes], path: Path) -> None:
    if not lines:
        return
    # A full disk or a closed terminal must not end the copying: the child would block on its full pipe.
    with contextlib.suppress(OSError), os.fdopen(open_for_append(path), "ab") as file:
        file.write(b"\n".join(lines) + b"\n")
    with contextlib.suppress(OSError):
        for line in lines:
            show(name, readable(line.decode(errors="replace").rstrip("\r")))


def readable(line: str) -> str:
    """A service's JSON line as `level message key=value`; any other line as it is. The file keeps the JSON."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict) or "message" not in record:
        return line
    details = " ".join(f"{key}={value}" for key, value in record.items() if key not in _SHOWN_APART)
    return f"{record.get('level', 'info'):<7} {record['message']} {details}".rstrip()
