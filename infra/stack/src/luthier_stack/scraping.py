"""Where Prometheus finds each service: on one host every one needs a port of its own.

Nothing happens unless `OTEL_METRICS_EXPORTER` names prometheus. With `OTEL_EXPORTER_PROMETHEUS_PORT` the services get
that port and the ones after it, in the order of their start; without it, free ports.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier_stack.ports import find_free_ports

TARGETS_FILE = "prometheus-targets.json"
PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
_LOOPBACK = "127.0.0.1"


def metric_ports(env: Mapping[str, str], services: Sequence[str]) -> dict[str, int]:
    """The port of each service's `/metrics`; empty when Prometheus is not asked for."""
    if "prometheus" not in env.get("OTEL_METRICS_EXPORTER", "").replace(" ", "").split(","):
        return {}
    if first := env.get(PORT):
        return {name: int(first) + number for number, name in enumerate(services)}
    return dict(zip(services, find_free_ports(len(services)), strict=True))


def env_of(ports: Mapping[str, int], env: Mapping[str, str], service: str) -> dict[str, str]:
    """What one service is told about it; on loopback unless the environment says otherwise."""
    return {PORT: str(ports[service]), HOST: env.get(HOST, _LOOPBACK)} if service in ports else {}


def write_targets(
    home: Path, ports: Mapping[str, int], env: Mapping[str, str], rooms: Mapping[str, str] | None = None
) -> None:
    """Write the file for `file_sd_configs`, with the labels that metrics over OTLP would have; remove an old one.

    `rooms` names the service of each process that is called otherwise.
    """
    path = home / TARGETS_FILE
    if not ports:
        path.unlink(missing_ok=True)
        return
    targets = [
        {
            "targets": [f"{env.get(HOST, _LOOPBACK)}:{port}"],
            "labels": {"service_name": f"luthier-{(rooms or {}).get(name, name)}", "service_namespace": "luthier"},
        }
        for name, port in ports.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(targets, indent=2) + "\n")
