"""Telemetry as a collector sees it. Each case is a process of its own: providers are set once per process."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}
PROGRAM = """
import logging
from luthier_common.kit.logs import bind, start_logs
from luthier_common.kit.telemetry import *

start_logs("api")
telemetry = start_telemetry("api")
with tracer().start_as_current_span("create", attributes={"luthier.job_id": "ftjob-1", "db.statement": "canary-1"}):
    first = current_traceparent()
    with bind(job_id="ftjob-1"):
        try:
            raise ValueError("fails")
        except ValueError:
            logging.getLogger("luthier_api").exception("went wrong")
with use_traceparent(first), tracer().start_as_current_span("handle"):
    pass
try:
    with linked_trace("attempt", first, {"luthier.attempt": 1}):
        raise RuntimeError("canary-2")
except RuntimeError:
    pass
meter().create_histogram("luthier.queue.wait", unit="s").record(0.3)
meter().create_counter("luthier.jobs.finished").add(2, {"status": "succeeded"})
"""


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

    def spans(self) -> dict[str, dict[str, Any]]:
        batches = [batch for got in self.got["/v1/traces"] for batch in got["resourceSpans"]]
        return {s["name"]: s for batch in batches for scope in batch["scopeSpans"] for s in scope["spans"]}

    def metrics(self) -> dict[str, dict[str, Any]]:
        batches = [batch for got in self.got["/v1/metrics"] for batch in got["resourceMetrics"]]
        return {m["name"]: m for batch in batches for scope in batch["scopeMetrics"] for m in scope["metrics"]}

    def logs(self) -> list[dict[str, Any]]:
        batches = [batch for got in self.got["/v1/logs"] for batch in got["resourceLogs"]]
        return [record for batch in batches for scope in batch["scopeLogs"] for record in scope["logRecords"]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def _run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def _attributes(thing: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in thing.get("attributes", [])}


def test_a_collector_gets_all_three_signals_and_no_secret(collector: Collector) -> None:
    endpoint = f"http://127.0.0.1:{collector.server.server_port}"
    run = _run(PROGRAM + "telemetry.stop()", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, LUTHIER_LOG_FORMAT="json")
    spans = collector.spans()
    assert spans["handle"]["traceId"] == spans["create"]["traceId"]
    assert spans["handle"]["parentSpanId"] == spans["create"]["spanId"]
    attempt = spans["attempt"]
    assert attempt["traceId"] != spans["create"]["traceId"]
    assert "parentSpanId" not in attempt
    assert attempt["links"][0]["spanId"] == spans["create"]["spanId"]
    assert attempt["status"]["code"] == "STATUS_CODE_ERROR"
    assert _attributes(attempt["events"][0])["exception.type"] == "RuntimeError"
    assert _attributes(spans["create"]) == {"luthier.job_id": "ftjob-1"}
    assert "canary" not in json.dumps(collector.got)

    resource = _attributes(collector.got["/v1/traces"][0]["resourceSpans"][0]["resource"])
    assert resource["service.name"] == "luthier-api"
    bounds = collector.metrics()["luthier.queue.wait"]["histogram"]["dataPoints"][0]["explicitBounds"]
    assert bounds[0] < 0.01
    assert 0.25 in bounds
    assert collector.metrics()["luthier.jobs.finished"]["sum"]["dataPoints"][0]["asInt"] == "2"

    (told,) = [record for record in collector.logs() if record["body"]["stringValue"] == "went wrong"]
    assert _attributes(told)["job_id"] == "ftjob-1"
    assert "ValueError: fails" in _attributes(told)["exception.stacktrace"]
    assert told["traceId"] == spans["create"]["traceId"]
    (line,) = [json.loads(text) for text in run.stderr.splitlines()]
    assert line["job_id"] == "ftjob-1"
    assert len(line["trace_id"]) == 32


@pytest.mark.parametrize("dead", ["refuses", "hangs"])
def test_a_dead_collector_holds_up_an_exit_for_two_seconds_at_most(dead: str, free_port: Callable[[], int]) -> None:
    listener = None
    port = free_port()
    if dead == "hangs":
        listener = ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler, bind_and_activate=False)
        listener.server_bind()
        listener.server_activate()
    program = PROGRAM + "import time; at = time.monotonic(); telemetry.stop(2.0); print(time.monotonic() - at)"
    started = time.monotonic()
    run = _run(program, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    after_stop_s = time.monotonic() - started
    if listener is not None:
        listener.server_close()
    assert float(run.stdout) < 2.3
    assert after_stop_s < 15


def test_prometheus_can_scrape_instead(free_port: Callable[[], int]) -> None:
    port = free_port()
    program = PROGRAM + (
        f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read().decode())\n"
        "telemetry.stop()"
    )
    run = _run(program, OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT=str(port))
    assert 'luthier_queue_wait_seconds_bucket{le="0.5"' in run.stdout
    assert "luthier_jobs_finished_total{" in run.stdout
    assert 'status="succeeded"' in run.stdout


def test_a_taken_metrics_port_does_not_stop_the_service(free_port: Callable[[], int]) -> None:
    port = free_port()
    with ThreadingHTTPServer(("localhost", port), BaseHTTPRequestHandler):
        run = _run(
            PROGRAM + "telemetry.stop(); print('fine')",
            OTEL_METRICS_EXPORTER="prometheus",
            OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
        )
    assert run.stdout == "fine\n"
    assert "metrics are not served" in run.stderr
