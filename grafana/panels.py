"""Panels and dashboards as Grafana's JSON: sizes, units, legends and thresholds. Knows no measurement."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana.queries import Query

__all__ = ["DATA_SOURCE", "Dashboard", "Panel", "Threshold", "dashboard_json"]

DATA_SOURCE = {"type": "influxdb", "uid": "idlewheel-influxdb"}
# What the catalogue calls a unit, in Grafana's words; things that are counted have none.
_UNITS = {
    "percent": "percent",
    "celsius": "celsius",
    "watt": "watt",
    "watt-hour": "watth",
    "kilowatt-hour": "kwatth",
    "megabit per second": "Mbits",
    "byte": "decbytes",
    "millisecond": "ms",
    "second": "s",
    "row per second": "suffix: rows/s",
    "per second": "suffix: /s",
    "currency": "currency:¤",
}
_COLUMNS = 24
_NOW = "5m"


@dataclass(frozen=True)
class Threshold:
    """From `value` on a figure is shown in `colour`."""

    value: float
    colour: str


@dataclass(frozen=True)
class Panel:
    """One panel. `kind` is Grafana's: timeseries, state-timeline, stat or table. The unit is that of the columns.

    `now` shows what was measured lately whatever the dashboard's time range, and nothing when nothing was. `nothing` is
    what stands there instead of "No data" where that is a good sign.
    """

    title: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    description: str = ""
    stacked: bool = False
    bars: bool = False
    decimals: int | None = None
    thresholds: tuple[Threshold, ...] = ()
    mappings: dict[str, tuple[str, str]] = field(default_factory=dict)
    now: bool = False
    nothing: str = ""


@dataclass(frozen=True)
class Dashboard:
    """A page. `variables` are Grafana's template variables by name, with the query for their values."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    time_from: str = "now-6h"
    variables: dict[str, str] = field(default_factory=dict)


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana reads it from a file."""
    return {
        "uid": dashboard.uid,
        "title": f"Idlewheel: {dashboard.title}",
        "description": dashboard.description,
        "tags": ["idlewheel"],
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": dashboard.time_from, "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Idlewheel",
                "tags": ["idlewheel"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": False,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": [_variable(name, query) for name, query in dashboard.variables.items()]},
        "annotations": {"list": []},
        "panels": _placed(dashboard.panels),
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": DATA_SOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
    }


def _placed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels from left to right, in rows that are as high as their highest."""
    placed = []
    x = y = row_height = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        placed.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
        x += panel.width
        row_height = max(row_height, panel.height)
    return placed


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": _description(panel),
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "interval": "10s",  # points are made this often; a shorter window would have holes
        "targets": [_target(query, chr(ord("A") + place), panel.kind) for place, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        **({"timeFrom": _NOW, "hideTimeOverride": True} if panel.now else {}),
    }


def _description(panel: Panel) -> str:
    """The panel's own words, then what the catalogue says of every figure."""
    columns = [column for query in panel.queries for column in query.columns if column.meaning]
    if len(columns) == 1 and not panel.description:
        return columns[0].meaning
    figures = "\n".join(f"- *{column.name}*: {column.meaning}" for column in columns)
    return "\n\n".join(text for text in (panel.description, figures) if text)


def _target(query: Query, letter: str, kind: str) -> dict[str, Any]:
    return {
        "refId": letter,
        "datasource": DATA_SOURCE,
        "rawQuery": True,
        "query": query.text(),
        "alias": "" if kind == "table" else query.legend,
        "resultFormat": "table" if kind == "table" else "time_series",
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    units = {column.unit for query in panel.queries for column in query.columns}
    defaults: dict[str, Any] = {
        "unit": _UNITS.get(units.pop(), "short") if len(units) == 1 else "short",
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [
                {"value": None, "color": "text" if panel.kind == "stat" else "green"},
                *({"value": step.value, "color": step.colour} for step in panel.thresholds),
            ],
        },
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "color": colour, "index": place}}}
            for place, (value, (text, colour)) in enumerate(panel.mappings.items())
        ],
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.nothing:
        defaults["noValue"] = panel.nothing
    if panel.kind == "timeseries":
        defaults["custom"] = _drawing(panel)
    if panel.kind == "state-timeline":
        defaults["custom"] = {"fillOpacity": 70, "lineWidth": 0, "spanNulls": _gap_ms(panel)}
    return defaults


def _drawing(panel: Panel) -> dict[str, Any]:
    return {
        "axisSoftMin": 0,
        "drawStyle": "bars" if panel.bars else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1 if panel.bars else 2,
        "fillOpacity": 60 if panel.bars else 30 if panel.stacked else 8,
        "showPoints": "auto",  # a figure between two gaps would not be seen as a line
        "spanNulls": _gap_ms(panel),
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.thresholds else "off"},
    }


def _gap_ms(panel: Panel) -> int:
    """A longer time without a figure is worth seeing. A vehicle tells everything every few minutes at least."""
    return 600_000 if any(query.vehicle for query in panel.queries) else 120_000


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "vertical",
            "textMode": "value_and_name",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if panel.kind == "table":
        return {"showHeader": True}
    if panel.kind == "state-timeline":
        return {
            "alignValue": "left",
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        }
    return {
        "legend": {
            "displayMode": "table" if any(query.by_tag for query in panel.queries) else "list",
            "placement": "right" if any(query.by_tag for query in panel.queries) else "bottom",
            "showLegend": True,
            "calcs": ["sum" if panel.bars else "lastNotNull"] if any(query.by_tag for query in panel.queries) else [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
