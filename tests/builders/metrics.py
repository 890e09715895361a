"""What this process shows to those who collect its metrics."""

from functools import cache

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint


@cache
def _reader() -> InMemoryMetricReader:
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


def shown(name: str) -> dict[tuple[str, ...], float]:
    """The series of one metric, by the values of their attributes."""
    data = _reader().get_metrics_data()
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
    points = [point for scope in scopes for one in scope.metrics if one.name == name for point in one.data.data_points]
    return {tuple(map(str, (p.attributes or {}).values())): p.value for p in points if isinstance(p, NumberDataPoint)}
