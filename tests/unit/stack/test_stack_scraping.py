"""Where Prometheus finds the services of one host."""

import json
from pathlib import Path

from luthier_stack.scraping import HOST, PORT, TARGETS_FILE, env_of, metric_ports, write_targets

SERVICES = ("registry", "api")
ASKED = {"OTEL_METRICS_EXPORTER": "otlp, prometheus"}


def test_nobody_listens_unless_prometheus_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / TARGETS_FILE).write_text("[]")
    ports = metric_ports({"OTEL_METRICS_EXPORTER": "otlp"}, SERVICES)
    write_targets(tmp_path, ports, {})
    assert ports == {}
    assert env_of(ports, {}, "api") == {}
    assert not (tmp_path / TARGETS_FILE).exists()


def test_each_service_gets_a_port_of_its_own_and_stands_in_the_targets_file(tmp_path: Path) -> None:
    ports = metric_ports(ASKED, SERVICES)
    write_targets(tmp_path / "home", ports, ASKED)
    assert len(set(ports.values())) == 2
    assert env_of(ports, ASKED, "api") == {PORT: str(ports["api"]), HOST: "127.0.0.1"}
    targets = json.loads((tmp_path / "home" / TARGETS_FILE).read_text())
    assert targets[1]["targets"] == [f"127.0.0.1:{ports['api']}"]
    assert targets[1]["labels"]["service_name"] == "luthier-api"


def test_processes_of_one_service_have_its_name(tmp_path: Path) -> None:
    rooms = {"api": "api", "api-2": "api"}
    write_targets(tmp_path, metric_ports(ASKED, list(rooms)), ASKED, rooms)
    targets = json.loads((tmp_path / TARGETS_FILE).read_text())
    assert [target["labels"]["service_name"] for target in targets] == ["luthier-api"] * 2
    assert len({target["targets"][0] for target in targets}) == 2


def test_a_port_that_was_given_is_the_first_of_them() -> None:
    assert metric_ports({**ASKED, PORT: "9464"}, SERVICES) == {"registry": 9464, "api": 9465}
