"""What the scheduler measures of itself. What it decides is measured where the facts are seen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from luthier_common.kit.telemetry import LiveGauge, meter

_active = LiveGauge("luthier.scheduler.active", "{instance}", "1 where this instance holds the lease and decides")
_cycle = meter().create_histogram("luthier.scheduler.cycle", "s", "One look at everything that waits")


def say_active(is_active: bool) -> None:
    """Whether this instance is the one that decides."""
    _active.set(int(is_active))


@contextmanager
def measured_cycle() -> Iterator[None]:
    """How long a cycle takes; one that fails counts too."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        _cycle.record(time.monotonic() - began_s)
