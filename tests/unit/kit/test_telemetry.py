"""What needs no SDK: which exporters are asked for, and trace context that is passed on."""

import os
import subprocess
import sys

import pytest

from luthier_common.kit.errors import SettingError
from luthier_common.kit.telemetry import (
    asked_exporters,
    current_traceparent,
    linked_trace,
    start_telemetry,
    use_traceparent,
)
from luthier_common.kit.telemetry_sdk import check_protocols

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NONE: frozenset[str] = frozenset()
OTLP = frozenset({"otlp"})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (NONE, NONE, NONE)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, (OTLP, OTLP, OTLP)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, (OTLP, NONE, NONE)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_LOGS_EXPORTER": "none"}, (OTLP, OTLP, NONE)),
        ({"OTEL_METRICS_EXPORTER": "prometheus, otlp"}, (NONE, frozenset({"prometheus", "otlp"}), NONE)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, (OTLP, NONE, NONE)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, (NONE, NONE, NONE)),
    ],
)
def test_only_the_standard_variables_ask(environ: dict[str, str], expected: tuple[frozenset[str], ...]) -> None:
    asked = asked_exporters(environ)
    assert (asked["traces"], asked["metrics"], asked["logs"]) == expected


def test_without_a_request_the_sdk_is_not_even_loaded() -> None:
    program = (
        "import sys; from luthier_common.kit.telemetry import *; t = start_telemetry('api')\n"
        "with linked_trace('attempt', None): pass\n"
        "t.stop(); print([m for m in sys.modules if 'opentelemetry.sdk' in m or 'exporter' in m])"
    )
    run = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"])
@pytest.mark.parametrize("protocol", ["grpc", "http/json"])
def test_a_protocol_that_is_not_spoken_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv(name, protocol)
    with pytest.raises(SettingError, match=rf"^{name} is {protocol}: only http/protobuf is spoken"):
        start_telemetry("api")


def test_the_protocol_of_a_signal_counts_more_than_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    check_protocols(asked_exporters(os.environ))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with pytest.raises(SettingError, match=r"^OTEL_EXPORTER_OTLP_PROTOCOL is grpc"):
        check_protocols(asked_exporters(os.environ))


def test_trace_context_is_passed_on_even_when_nothing_is_recorded() -> None:
    start_telemetry("api").stop()
    assert current_traceparent() is None
    with use_traceparent(TRACEPARENT):
        assert current_traceparent() == TRACEPARENT
    assert current_traceparent() is None


@pytest.mark.parametrize("nonsense", [None, "", "nonsense", "00-0-0-0"])
def test_a_bad_trace_context_changes_nothing(nonsense: str | None) -> None:
    with use_traceparent(nonsense):
        assert current_traceparent() is None
    with linked_trace("attempt", nonsense):
        pass
