"""An OTLP receiver in this process: it keeps what services send, and reads it as a person would."""

import base64
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


@dataclass(frozen=True)
class Span:
    """A span as it was sent; ids in hex."""

    service: str
    name: str
    trace: str
    parent: str | None
    links: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def job_id(self) -> str | None:
        return self.attributes.get("luthier.job.id")


class Collector:
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.got: dict[str, list[dict[str, Any]]] = {path: [] for path in REQUESTS}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.got[self.path].append(MessageToDict(REQUESTS[self.path].FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def spans(self) -> dict[str, dict[str, Any]]:
        """Spans by name, as they came; of equal names the last."""
        return {span["name"]: span for _, span in self._raw_spans()}

    def all_spans(self) -> list[Span]:
        return [
            Span(
                service=service,
                name=raw["name"],
                trace=_hex(raw["traceId"]),
                parent=_hex(raw["parentSpanId"]) if raw.get("parentSpanId") else None,
                links=tuple(_hex(link["traceId"]) for link in raw.get("links", [])),
                attributes=attributes_of(raw),
            )
            for service, raw in self._raw_spans()
        ]

    def metrics(self) -> dict[str, dict[str, Any]]:
        batches = [batch for got in list(self.got["/v1/metrics"]) for batch in got["resourceMetrics"]]
        return {m["name"]: m for batch in batches for scope in batch["scopeMetrics"] for m in scope["metrics"]}

    def logs(self) -> list[dict[str, Any]]:
        batches = [batch for got in list(self.got["/v1/logs"]) for batch in got["resourceLogs"]]
        return [record for batch in batches for scope in batch["scopeLogs"] for record in scope["logRecords"]]

    def _raw_spans(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for got in list(self.got["/v1/traces"]):
            for batch in got["resourceSpans"]:
                service = str(attributes_of(batch["resource"])["service.name"])
                for scope in batch["scopeSpans"]:
                    yield from ((service, span) for span in scope["spans"])


@contextmanager
def collecting() -> Iterator[Collector]:
    """A receiver until the block ends."""
    made = Collector()
    try:
        yield made
    finally:
        made.close()


def attributes_of(thing: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a span, record or resource."""
    return {item["key"]: next(iter(item["value"].values())) for item in thing.get("attributes", [])}


def _hex(encoded: str) -> str:
    return base64.b64decode(encoded).hex()
