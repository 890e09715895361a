"""Telemetry as a collector sees it. Each case is a process of its own: providers are set once per process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from builders.collector import Collector, attributes_of, collecting

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
HELD_UP_WITHIN_S = 6.0
"""Far above the two seconds that an exit may wait: machines are busy. Below the ten that the SDK itself would wait."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def _run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_a_collector_gets_all_three_signals_and_no_secret(collector: Collector) -> None:
    run = _run(
        PROGRAM + "telemetry.stop(30)", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, LUTHIER_LOG_FORMAT="json"
    )
    spans = collector.spans()
    assert spans["handle"]["traceId"] == spans["create"]["traceId"]
    assert spans["handle"]["parentSpanId"] == spans["create"]["spanId"]
    attempt = spans["attempt"]
    assert attempt["traceId"] != spans["create"]["traceId"]
    assert "parentSpanId" not in attempt
    assert attempt["links"][0]["spanId"] == spans["create"]["spanId"]
    assert attempt["status"]["code"] == "STATUS_CODE_ERROR"
    assert attributes_of(attempt["events"][0])["exception.type"] == "RuntimeError"
    assert attributes_of(spans["create"]) == {"luthier.job_id": "ftjob-1"}
    assert "canary" not in json.dumps(collector.got)

    resource = attributes_of(collector.got["/v1/traces"][0]["resourceSpans"][0]["resource"])
    assert resource["service.name"] == "luthier-api"
    bounds = collector.metrics()["luthier.queue.wait"]["histogram"]["dataPoints"][0]["explicitBounds"]
    assert bounds[0] < 0.01
    assert 0.25 in bounds
    assert collector.metrics()["luthier.jobs.finished"]["sum"]["dataPoints"][0]["asInt"] == "2"

    (told,) = [record for record in collector.logs() if record["body"]["stringValue"] == "went wrong"]
    assert attributes_of(told)["job_id"] == "ftjob-1"
    assert "ValueError: fails" in attributes_of(told)["exception.stacktrace"]
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
    program = PROGRAM + "import time; print(time.monotonic()); telemetry.stop(2.0); print(time.monotonic())"
    run = _run(program, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    gone_at = time.monotonic()
    if listener is not None:
        listener.server_close()
    began_at, stopped_at = map(float, run.stdout.split())
    assert stopped_at - began_at < HELD_UP_WITHIN_S
    assert gone_at - stopped_at < HELD_UP_WITHIN_S


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


def test_a_series_that_is_taken_back_or_too_old_is_shown_no_longer(free_port: Callable[[], int]) -> None:
    port = free_port()
    program = f"""
import time, urllib.request
from luthier_common.kit.telemetry import *

def shown():
    text = urllib.request.urlopen("http://127.0.0.1:{port}/metrics").read().decode()
    return sorted(line.split("{{")[1].split(",")[0] for line in text.splitlines() if line.startswith("luthier_loss"))

gauge = LiveGauge("luthier.loss", "", "Loss")
telemetry = start_telemetry("trainer")
gauge.set(1.0, job_id="a")
gauge.set(2.0, job_id="b")
print(shown())
gauge.drop(job_id="a")
print(shown())
gauge.replace([(3.0, {{"job_id": "c"}})])
print(shown())
gauge.expire(time.monotonic())
print(shown())
gauge.expire(time.monotonic() + 60)
print(shown())
telemetry.stop()
"""
    run = _run(program, OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT=str(port))
    a, b, c = ('job_id="a"', 'job_id="b"', 'job_id="c"')
    assert run.stdout.split("\n")[:5] == [str([a, b]), str([b]), str([c]), "[]", str([c])]
