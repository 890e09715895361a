"""Chunks of bytes to lines, in memory bounded by one line and one slice."""

from collections.abc import Iterable, Iterator

SLICE_BYTES = 1 << 20


def split_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[list[bytes | int]]:
    """Batches of lines without their newline. A line over the limit is not kept: its length stands in its place."""
    parts: list[bytes] = []
    size = 0
    for block in _slices(chunks):
        lines = block.split(b"\n")
        if len(lines) == 1:
            size += len(block)
            _keep(parts, block, size, max_line_bytes)
            continue
        size += len(lines[0])
        _keep(parts, lines[0], size, max_line_bytes)
        batch: list[bytes | int] = [b"".join(parts) if size <= max_line_bytes else size]
        parts, tail = [], lines.pop()
        # A slice may itself be longer than the limit, so its whole lines are measured where that is possible.
        whole = lines[1:]
        batch += whole if max_line_bytes >= SLICE_BYTES else [_bounded(line, max_line_bytes) for line in whole]
        yield batch
        size = len(tail)
        _keep(parts, tail, size, max_line_bytes)
    if size:
        yield [b"".join(parts) if size <= max_line_bytes else size]


def _keep(parts: list[bytes], part: bytes, size: int, max_line_bytes: int) -> None:
    if size <= max_line_bytes:
        parts.append(part)
    else:
        parts.clear()


def _bounded(line: bytes, max_line_bytes: int) -> bytes | int:
    return line if len(line) <= max_line_bytes else len(line)


def _slices(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) <= SLICE_BYTES:
            if chunk:
                yield chunk
            continue
        for start in range(0, len(chunk), SLICE_BYTES):
            yield chunk[start : start + SLICE_BYTES]
