"""`/metrics`: the catalogue in Prometheus' text format, as its own parser and promtool read it."""

import subprocess
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from coordinator.adapters.prometheus import exposition, prometheus_name
from coordinator.core import Core
from coordinator.metrics import CATALOGUE, FieldKind, MetricPoint
from coordinator.observation import Observer
from tests.conftest import require_promtool
from tests.unit.test_observation import core_at_work, service


def test_times_are_seconds_counters_are_totals_and_no_series_is_a_vehicles() -> None:
    points = [
        MetricPoint("job_waste", 0, {"cause": "lost"}, {"rows_released": 8, "compute_ms": 1500.0}),
        MetricPoint("vehicle_work", 0, {"vehicle": "car-1", "region": "x"}, {"rows": 1}),
    ]
    text = exposition(points).decode()
    assert 'idlewheel_job_waste_rows_released_total{cause="lost"} 8.0' in text
    assert 'idlewheel_job_waste_compute_seconds_total{cause="lost"} 1.5' in text
    assert "car-1" not in text


def test_every_fleet_wide_field_is_there_and_described() -> None:
    observer = Observer(core_at_work())
    observer.fleet_wide(service(refusals=Counter(too_large=1)), 5)
    families = {each.name: each for each in text_string_to_metric_families(exposition(observer.latest).decode())}
    for measurement in CATALOGUE:
        for field in measurement.fields:
            if measurement.fleet_wide and field.kind is not FieldKind.TEXT:
                family = families[prometheus_name(measurement, field).removesuffix("_total")]
                assert family.documentation == field.description
                assert family.samples


def test_a_coordinator_that_has_seen_nothing_shows_what_it_can() -> None:
    observer = Observer(Core())
    observer.fleet_wide(service(), 5)
    assert "idlewheel_fleet_state_vehicles 0.0" in exposition(observer.latest).decode()


def test_promtool_has_nothing_to_say() -> None:
    observer = Observer(core_at_work())
    observer.fleet_wide(service(refusals=Counter(too_large=1)), 5)
    check = subprocess.run(
        [require_promtool(), "check", "metrics"], input=exposition(observer.latest), capture_output=True, check=False
    )
    assert (check.returncode, check.stderr.decode()) == (0, "")
