"""What the scheduler measures of itself. What it decides is measured where the facts are seen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from luthier_common.kit.telemetry import LiveGauge, meter

_active = LiveGauge("luthier.scheduler.active", "{instance}", "1 where this instance holds the lease and decides")
_resting_nodes = LiveGauge("luthier.scheduler.resting_nodes", "{node}", "Nodes that rest after failed runs")
_cycle = meter().create_histogram("luthier.scheduler.cycle", "s", "One look at everything that waits")


def say_active(is_active: bool) -> None:
    """Whether this instance is the one that decides."""
    _active.set(int(is_active))
    if not is_active:
        _resting_nodes.drop()


def say_resting(num_nodes: int) -> None:
    """How many nodes get no jobs now because the last runs there failed, of several jobs."""
    _resting_nodes.set(num_nodes)


@contextmanager
def measured_cycle() -> Iterator[None]:
    """How long a cycle takes; one that fails counts too."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        _cycle.record(time.monotonic() - began_s)
