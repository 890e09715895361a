"""Traces, metrics and logs over OpenTelemetry, off unless a standard OTEL_* variable asks.

This file needs the small API package only: everything here does nothing, cheaply, until `start_telemetry` has loaded
the SDK. An endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`, or one per signal) or an exporter name (`OTEL_TRACES_EXPORTER`,
`OTEL_METRICS_EXPORTER`, `OTEL_LOGS_EXPORTER`: otlp, none; metrics also prometheus) asks; `OTEL_SDK_DISABLED` says no.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TypeAlias

from opentelemetry import context, metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SIGNALS = ("traces", "metrics", "logs")
_SCOPE = "luthier"
_propagator = TraceContextTextMapPropagator()
Attribute: TypeAlias = str | int | float | bool


@dataclass(slots=True)
class Telemetry:
    """What was started. `stop` is safe to call twice."""

    service: str
    exporters: Mapping[str, frozenset[str]] = field(default_factory=dict)
    closers: list[Callable[[], object]] = field(default_factory=list)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Sends what is left, for at most `timeout_s`: a dead collector never holds up an exit."""
        closers, self.closers = self.closers, []
        threads = [threading.Thread(target=close, name="telemetry-stop", daemon=True) for close in closers]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def start_telemetry(service: str) -> Telemetry:
    """Starts what the environment asks for, as service `luthier-<service>`. Once per process."""
    telemetry = Telemetry(f"luthier-{service}", asked_exporters(os.environ))
    if any(telemetry.exporters.values()):
        # The SDK costs memory and start-up time that a process without a collector should not pay.
        telemetry.closers = import_module("luthier_common.kit.telemetry_sdk").start(telemetry)
    return telemetry


def asked_exporters(environ: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The exporters that the environment asks for, by signal."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {signal: frozenset() for signal in SIGNALS}
    return {signal: _asked(signal, environ) for signal in SIGNALS}


def _asked(signal: str, environ: Mapping[str, str]) -> frozenset[str]:
    named = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").replace(" ", "").lower()
    if named:
        return frozenset(named.split(",")) - {"none", ""}
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    return frozenset({"otlp"}) if any(environ.get(name) for name in endpoints) else frozenset()


def is_measuring() -> bool:
    """Whether metrics go anywhere: what costs a query only for them is left undone otherwise."""
    return bool(asked_exporters(os.environ)["metrics"])


@cache
def tracer() -> trace.Tracer:
    """The tracer of this code base."""
    return trace.get_tracer(_SCOPE)


def meter() -> metrics.Meter:
    """The meter of this code base."""
    return metrics.get_meter(_SCOPE)


class LiveGauge:
    """A gauge whose series can be taken back: what nobody sets any more would else be shown for ever."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        self._until_s = math.inf
        meter().create_observable_gauge(name, [self._observe], unit, description)

    def set(self, value: float, **attributes: str) -> None:
        """The value of one series from now on."""
        self._values[tuple(sorted(attributes.items()))] = value

    def drop(self, **attributes: str) -> None:
        """Forget every series that has these attributes, among others it may have."""
        wanted = set(attributes.items())
        self._values = {key: value for key, value in self._values.items() if not wanted <= set(key)}

    def replace(self, values: Iterable[tuple[float, Mapping[str, str]]]) -> None:
        """These series, and no others."""
        self._values = {tuple(sorted(attributes.items())): value for value, attributes in values}

    def expire(self, at_s: float) -> None:
        """Show nothing from this time of the monotonic clock on: the exporter's thread outlives a loop that hangs."""
        self._until_s = at_s

    def _observe(self, _options: metrics.CallbackOptions) -> list[metrics.Observation]:
        if time.monotonic() > self._until_s:
            return []
        # Called in the exporter's thread while the loop may write: the copy is one step.
        return [metrics.Observation(value, dict(key)) for key, value in self._values.copy().items()]


def current_traceparent() -> str | None:
    """The W3C trace context of where we are, to be carried in a header or a document."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def use_traceparent(traceparent: str | None) -> Iterator[None]:
    """Spans inside belong to the trace that was handed over; None or nonsense changes nothing."""
    if not traceparent:
        yield
        return
    token = context.attach(_propagator.extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def linked_trace(
    name: str, link_to: str | None, attributes: Mapping[str, Attribute] | None = None
) -> Iterator[trace.Span]:
    """A new trace whose root span is linked to another trace (its traceparent): every attempt is a trace of its own."""
    linked = trace.get_current_span(_propagator.extract({"traceparent": link_to or ""})).get_span_context()
    links = [trace.Link(linked)] if linked.is_valid else []
    root = context.Context()
    with tracer().start_as_current_span(name, context=root, links=links, attributes=attributes) as span:
        yield span


@contextmanager
def span_of(
    name: str, traceparent: str | None = None, attributes: Mapping[str, Attribute] | None = None
) -> Iterator[trace.Span]:
    """A span of the trace that was handed over; without one, of the trace we are in. Attributes become `luthier.*`."""
    named = {f"luthier.{key}": value for key, value in (attributes or {}).items()}
    with use_traceparent(traceparent), tracer().start_as_current_span(name, attributes=named) as span:
        yield span
