"""Grafana's dashboards: generated from the catalogue, as Grafana's own schema has them, and cheap to look at."""

from pathlib import Path
from typing import Any

import grafana_schema
import pytest
import yaml
from pydantic import TypeAdapter

from coordinator.metrics import FLEET_STATE, JOB_STATE
from grafana.generate import FOLDER, files
from grafana.pages import DASHBOARDS, VEHICLE
from grafana.panels import DATA_SOURCE, Dashboard, dashboard_json
from grafana.queries import Query, mean, total

PROVISIONING = Path(__file__).parents[2] / "grafana" / "provisioning"
PANELS = {
    "timeseries": grafana_schema.TimeSeries,
    "stat": grafana_schema.Stat,
    "table": grafana_schema.Table,
    "state-timeline": grafana_schema.Table,  # the schema has none: its own part is compared with STATE_TIMELINE
}
# What Grafana's StateTimelinePanelCfg has of its own, in `options` and in a field's `custom`.
STATE_TIMELINE = {"alignValue", "mergeValues", "rowHeight", "showValue", "legend", "tooltip"}
STATE_TIMELINE_FIELD = {"fillOpacity", "lineWidth", "spanNulls"}
# The schema has no InfluxQL data source, whose part of a target is these:
INFLUXQL = {"rawQuery", "query", "alias", "resultFormat"}
PAGES = pytest.mark.parametrize("page", DASHBOARDS, ids=lambda page: page.title)


def test_the_files_are_the_generated_ones() -> None:
    assert {path: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == files()


def assert_nothing_lost(written: Any, read: Any, where: str) -> None:
    """Models pass over what they don't know: whatever was written must be there again after reading it.

    The values that a mapping maps are no names of theirs.
    """
    if isinstance(written, dict):
        for name, value in written.items():
            if where.endswith("].options") and name.isdecimal():
                continue
            assert name in read, f"{where}.{name} is not in the schema"
            assert_nothing_lost(value, read[name], f"{where}.{name}")
    elif isinstance(written, list):
        for place, value in enumerate(written):
            assert_nothing_lost(value, read[place], f"{where}[{place}]")
    else:
        assert written == read, where


def check(kind: Any, value: dict[str, Any], where: str) -> None:
    adapter = TypeAdapter(kind)
    assert_nothing_lost(value, adapter.dump_python(adapter.validate_python(value)), where)


@PAGES
def test_dashboards_and_panels_fit_grafanas_schema(page: Dashboard) -> None:
    document = dashboard_json(page)
    for panel in document["panels"]:
        for target in panel["targets"]:
            query = {name: value for name, value in target.items() if name not in INFLUXQL}
            check(grafana_schema.DataQuery, query, f"{panel['title']} {target['refId']}")
        if panel["type"] == "state-timeline":
            assert set(panel.pop("options")) == STATE_TIMELINE
            assert set(panel["fieldConfig"]["defaults"].pop("custom")) == STATE_TIMELINE_FIELD
        check(PANELS[panel["type"]], {**panel, "targets": []}, panel["title"])
    time = {"from_": document["time"]["from"], "to": document["time"]["to"]}  # `from` is a word of Python's
    check(grafana_schema.Dashboard, {**document, "panels": [], "time": time}, page.title)


@PAGES
def test_only_the_page_of_one_vehicle_reads_vehicles(page: Dashboard) -> None:
    for panel in page.panels:
        for query in panel.queries:
            assert query.measurement.fleet_wide is (page is not VEHICLE)
            assert query.vehicle is (page is VEHICLE)
            assert ("\"vehicle\" = '$vehicle'" in query.text()) is (page is VEHICLE)


@PAGES
def test_panels_lie_beside_each_other_and_have_one_unit(page: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard_json(page)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len(page.panels) <= 12
    for each in page.panels:
        if each.kind == "timeseries":
            assert len({column.unit for query in each.queries for column in query.columns}) == 1, each.title


def test_provisioning_names_this_data_source_and_where_the_dashboards_lie() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "influxdb.yml").read_text())["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == DATA_SOURCE
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "idlewheel.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert not [value for value in source["secureJsonData"].values() if "$" not in value]


def test_a_field_that_is_not_in_the_catalogue_cannot_be_named() -> None:
    with pytest.raises(KeyError, match="fleet_state has no field 'speed'"):
        mean(FLEET_STATE, "speed")
    with pytest.raises(AssertionError, match="no growth"):
        total(FLEET_STATE, "online")
    with pytest.raises(ValueError, match="too many values"):
        Query((mean(FLEET_STATE, "online"), mean(JOB_STATE, "running"))).text()


@PAGES
def test_what_is_told_as_now_is_not_old(page: Dashboard) -> None:
    for panel in page.panels:
        columns = [column for query in panel.queries if query.one_value for column in query.columns]
        of_the_fleet = page is not VEHICLE and any(column.text.startswith("last(") for column in columns)
        assert panel.now is of_the_fleet, panel.title


@PAGES
def test_every_panel_says_what_its_figures_are(page: Dashboard) -> None:
    assert [panel["title"] for panel in dashboard_json(page)["panels"] if not panel["description"]] == []


@PAGES
def test_what_only_adds_up_shows_zero_where_nothing_was_added(page: Dashboard) -> None:
    for panel in page.panels:
        if panel.kind == "stat" and all(c.text.startswith("sum(") for query in panel.queries for c in query.columns):
            assert panel.nothing == "0", panel.title
