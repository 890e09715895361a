"""The part of telemetry that needs the OpenTelemetry SDK; loaded by `start_telemetry` only when it is asked for."""

import copy
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status
from prometheus_client import start_http_server

from luthier_common.kit.errors import SettingError
from luthier_common.kit.logs import BoundFields, safe_traceback
from luthier_common.kit.telemetry import Telemetry, meter

_log = logging.getLogger(__name__)
OTLP_PROTOCOL = "http/protobuf"
SECOND_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 36000)
_SECRET_ATTRIBUTES = (
    "exception.message",
    "exception.stacktrace",
    "db.statement",
    "db.query.text",
    "messaging.message.body",
    "http.request.header.",
    "http.response.header.",
    "url.query",
)


def start(telemetry: Telemetry) -> list[Callable[[], object]]:
    """Sets the global providers; answers what stops them. SettingError for a protocol that is not spoken."""
    check_protocols(telemetry.exporters)
    resource = Resource.create(
        {
            "service.name": telemetry.service,
            "service.namespace": "luthier",
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
        }
    )
    closers: list[Callable[[], object]] = []
    if "otlp" in telemetry.exporters["traces"]:
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(RedactingExporter(OTLPSpanExporter())))
        trace.set_tracer_provider(tracers)
        closers.append(tracers.shutdown)
    if readers := _metric_readers(telemetry.exporters["metrics"]):
        meters = MeterProvider(readers, resource=resource, views=_views(), shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
        _watch_disks()
        closers.append(meters.shutdown)
    if "otlp" in telemetry.exporters["logs"]:
        loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
        loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        handler = SafeLoggingHandler(logger_provider=loggers)
        handler.addFilter(BoundFields())
        handler.addFilter(lambda record: not record.name.startswith(("opentelemetry", "urllib3", "requests")))
        logging.getLogger().addHandler(handler)
        closers.append(loggers.shutdown)
    return closers


def check_protocols(exporters: Mapping[str, frozenset[str]]) -> None:
    """The exporters post HTTP whatever these variables say: at a collector's gRPC port all of it would be lost."""
    for signal in (name for name, asked in exporters.items() if "otlp" in asked):
        names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        said = next(((name, os.environ[name]) for name in names if os.environ.get(name)), None)
        if said is not None and said[1].strip().lower() != OTLP_PROTOCOL:
            raise SettingError(f"{said[0]} is {said[1]}: only {OTLP_PROTOCOL} is spoken (a collector's port 4318)")


class RedactingExporter(SpanExporter):
    """Drops what may hold a message body, a prompt or a secret: texts of errors, statements, headers."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([_redacted(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class SafeLoggingHandler(LoggingHandler):
    """Sends log records with the same redacted tracebacks as the lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
            record.__dict__["exception.type"] = type(error).__name__
            record.__dict__["exception.stacktrace"] = safe_traceback(error)
        super().emit(record)


def _metric_readers(exporters: frozenset[str]) -> list[MetricReader]:
    readers: list[MetricReader] = []
    if "otlp" in exporters:
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    if "prometheus" in exporters:
        host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost")
        port = int(os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT", "9464"))
        try:
            start_http_server(port, host)
            readers.append(PrometheusMetricReader())
        except OSError as error:
            _log.warning("metrics are not served on %s:%d: %s", host, port, error)
    return readers


def _watch_disks() -> None:
    """Room on the disks that this process writes to: its home, and the objects where they are a directory."""
    disks = {"home": Path(os.environ.get("LUTHIER_HOME", ".luthier")).absolute()}
    objects = urlsplit(os.environ.get("LUTHIER_OBJECTS_URL", ""))
    if objects.scheme == "file":
        disks["objects"] = Path(unquote(objects.path))

    def observe(what: str) -> Callable[[metrics.CallbackOptions], list[metrics.Observation]]:
        def callback(_options: metrics.CallbackOptions) -> list[metrics.Observation]:
            present = {name: path for name, path in disks.items() if path.exists()}
            used = {name: shutil.disk_usage(path) for name, path in present.items()}
            return [metrics.Observation(getattr(usage, what), {"disk": name}) for name, usage in used.items()]

        return callback

    meter().create_observable_gauge("luthier.disk.free", [observe("free")], "By", "Room left on a disk")
    meter().create_observable_gauge("luthier.disk.size", [observe("total")], "By", "Size of a disk")


def _views() -> list[View]:
    """Durations are in seconds; the SDK's own buckets are made for milliseconds."""
    return [
        View(
            instrument_type=Histogram,
            instrument_unit="s",
            instrument_name="*",
            aggregation=ExplicitBucketHistogramAggregation(SECOND_BUCKETS),
        )
    ]


def _redacted(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_without_secrets(span.attributes),
        events=[Event(event.name, _without_secrets(event.attributes), event.timestamp) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _without_secrets(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (attributes or {}).items() if not name.startswith(_SECRET_ATTRIBUTES)}
