"""The committed dashboards as Grafana would read them, and the alert rules as Prometheus does."""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from builders.prometheus import NEEDS_PROMETHEUS

REPOSITORY = Path(__file__).resolve().parents[3]
GRAFANA = REPOSITORY / "infra" / "grafana"
ALERTS = REPOSITORY / "infra" / "prometheus"
NAMES = ("operations", "job", "capacity")
UNITS = {"short", "s", "percentunit", "reqps", "cps", "bytes", "Bps", "sci"}


@pytest.fixture(params=NAMES)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((GRAFANA / "dashboards" / f"{request.param}.json").read_text())
    return made


def test_the_files_are_what_the_code_makes() -> None:
    run = subprocess.run([sys.executable, str(GRAFANA / "dashboards.py"), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_every_panel_asks_the_provisioned_source_in_a_unit_that_grafana_knows(dashboard: dict[str, Any]) -> None:
    provisioned = (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert dashboard["uid"].startswith("luthier-")
    assert isinstance(dashboard["schemaVersion"], int)
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert target["expr"]
            assert target["datasource"]["type"] == "prometheus"
            assert f"uid: {target['datasource']['uid']}\n" in provisioned


def test_every_variable_of_a_query_is_declared(dashboard: dict[str, Any]) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in dashboard["panels"]])))
    assert used <= declared


def test_dashboards_have_addresses_of_their_own() -> None:
    uids = [json.loads((GRAFANA / "dashboards" / f"{name}.json").read_text())["uid"] for name in NAMES]
    assert len(set(uids)) == len(NAMES)


@pytest.mark.parametrize(
    "command", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")], ids=["check", "test"]
)
def test_alert_rules_fire_when_they_should(command: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip(NEEDS_PROMETHEUS)
    run = subprocess.run(("promtool", *command), cwd=ALERTS, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_probes_count_as_no_requests() -> None:
    operations = json.loads((GRAFANA / "dashboards" / "operations.json").read_text())
    [share] = [panel["targets"][0]["expr"] for panel in operations["panels"] if panel["title"] == "Requests that fail"]
    for query in (share, (ALERTS / "alerts.yml").read_text()):
        asked = re.findall(r"http_server_request_duration_seconds_count\{([^}]*)\}", query)
        assert len(asked) == 2
        assert all('http_route!~"/healthz|/readyz"' in labels for labels in asked)


def test_every_alert_is_tried_and_has_a_section_in_the_handbook() -> None:
    rules, tests = (ALERTS / "alerts.yml").read_text(), (ALERTS / "alerts.test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    handbook = (REPOSITORY / "docs" / "operations.md").read_text()
    headings = {_anchor(line) for line in handbook.splitlines() if line.startswith("#")}
    for alert in alerts:
        anchor = re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower()
        assert f"runbook: docs/operations.md#{anchor}\n" in rules
        assert f"alertname: {alert}\n        exp_alerts:\n          - exp_labels" in tests, alert
        assert anchor in headings, anchor


def _anchor(heading: str) -> str:
    text = heading.lstrip("#").strip().strip("`").lower()
    return re.sub(r"[^\w -]", "", text).replace(" ", "-")
