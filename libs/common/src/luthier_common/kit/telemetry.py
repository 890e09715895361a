"""Traces, metrics and logs over OpenTelemetry, off unless a standard OTEL_* variable asks.

This file needs the small API package only: everything here does nothing, cheaply, until `start_telemetry` has loaded
the SDK. An endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`, or one per signal) or an exporter name (`OTEL_TRACES_EXPORTER`,
`OTEL_METRICS_EXPORTER`, `OTEL_LOGS_EXPORTER`: otlp, none; metrics also prometheus) asks; `OTEL_SDK_DISABLED` says no.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module

from opentelemetry import context, metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SIGNALS = ("traces", "metrics", "logs")
_SCOPE = "luthier"
_propagator = TraceContextTextMapPropagator()


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


def tracer() -> trace.Tracer:
    """The tracer of this code base."""
    return trace.get_tracer(_SCOPE)


def meter() -> metrics.Meter:
    """The meter of this code base."""
    return metrics.get_meter(_SCOPE)


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
    name: str, link_to: str | None, attributes: Mapping[str, str | int | float | bool] | None = None
) -> Iterator[trace.Span]:
    """A new trace whose root span is linked to another trace (its traceparent): every attempt is a trace of its own."""
    linked = trace.get_current_span(_propagator.extract({"traceparent": link_to or ""})).get_span_context()
    links = [trace.Link(linked)] if linked.is_valid else []
    root = context.Context()
    with tracer().start_as_current_span(name, context=root, links=links, attributes=attributes) as span:
        yield span
