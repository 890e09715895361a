"""Panels and dashboards as Grafana reads them: small functions that make plain dictionaries. Pure."""

from collections.abc import Sequence
from typing import Any

Panel = dict[str, Any]
WIDTH = 24
SCHEMA_VERSION = 41
SOURCE = {"type": "prometheus", "uid": "prometheus"}
"""The id that Grafana's own image gives its Prometheus: the same files serve both."""
_CALM, _WORRIED, _ALARMED = "green", "yellow", "red"


def series(
    title: str, *queries: tuple[str, str], unit: str = "short", width: int = 8, stacked: bool = False, about: str = ""
) -> Panel:
    """Lines over time; each query is an expression and the name of its lines."""
    custom = {
        "drawStyle": "line",
        "fillOpacity": 30 if stacked else 5,
        "lineWidth": 1,
        "showPoints": "auto",
        "spanNulls": True,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    return _panel(title, "timeseries", queries, unit, width, 8, about) | {
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def number(
    title: str,
    query: str,
    *,
    unit: str = "short",
    width: int = 4,
    bad_above: float | None = None,
    bad_below: float | None = None,
    about: str = "",
) -> Panel:
    """One number; red beyond a bound."""
    steps: list[dict[str, Any]] = [{"color": _CALM, "value": None}]
    if bad_above is not None:
        steps.append({"color": _ALARMED, "value": bad_above})
    if bad_below is not None:
        steps = [{"color": _ALARMED, "value": None}, {"color": _CALM, "value": bad_below}]
    return _panel(title, "stat", [(query, "")], unit, width, 4, about) | {
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "colorMode": "value" if bad_above is None and bad_below is None else "background",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
    }


def row(title: str) -> Panel:
    """A heading."""
    return {"title": title, "type": "row", "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


def job_variable(query: str) -> dict[str, Any]:
    """The choice of a job, from the series of jobs that ran in the time that is shown."""
    return {
        "name": "job_id",
        "label": "Job",
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "job_id"},
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def dashboard(uid: str, title: str, about: str, panels: Sequence[Panel], *variables: dict[str, Any]) -> Panel:
    """The panels from left to right and from top to bottom, numbered in that order."""
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["luthier"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "timepicker": {},
        "annotations": {"list": []},
        "links": [
            {
                "title": "Luthier",
                "type": "dashboards",
                "tags": ["luthier"],
                "asDropdown": True,
                "includeVars": False,
                "keepTime": True,
            }
        ],
        "templating": {"list": list(variables)},
        "panels": _placed(panels),
    }


def _panel(
    title: str, kind: str, queries: Sequence[tuple[str, str]], unit: str, width: int, height: int, about: str
) -> Panel:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expr, "legendFormat": name or "__auto"}
        for number, (expr, name) in enumerate(queries)
    ]
    return {
        "title": title,
        "description": about,
        "type": kind,
        "datasource": SOURCE,
        "targets": targets,
        "gridPos": {"w": width, "h": height},
    }


def _placed(panels: Sequence[Panel]) -> list[Panel]:
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        size = panel["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        placed.append(panel | {"id": number, "gridPos": {"x": x, "y": y, **size}})
        x, height = x + size["w"], max(height, size["h"])
    return placed
