"""Progress lines to the parent, by a thread: a slow reader never holds up a step."""

import os
import queue
import threading

from luthier_trainer.protocol import Progress


class ProgressWriter:
    """Writes each report as one JSON line; the order is kept, `put` never blocks."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_lines, name="progress", daemon=True)
        self._thread.start()

    def put(self, report: Progress) -> None:
        """Hand over a report."""
        self._lines.put(report.model_dump_json().encode() + b"\n")

    def close(self, timeout_s: float = 10.0) -> None:
        """Wait until all lines are written, at most so long."""
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                return
