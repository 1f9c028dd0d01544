"""From the core's state to points: whole points, growth of counters, and only what the catalogue lists."""

import asyncio
from collections import Counter

import pytest

from coordinator.core import Core
from coordinator.delays import Delay
from coordinator.events import JobSubmitted, ModelAdded, VehicleCaps, VehicleState
from coordinator.metrics import CATALOGUE, FieldKind, MetricPoint
from coordinator.observation import Observer, ServiceState, growth, keep_observing, look_last
from coordinator.ports import StoreStatus
from fleet_wire.messages import Caps, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of, telemetry

MEASUREMENTS = {measurement.name: measurement for measurement in CATALOGUE}


def service(**changed: object) -> ServiceState:
    values = {
        "connected": True,
        "telemetry": Delay(),
        "messages": Delay(),
        "commits": Delay(),
        "waiting_ms": 0.0,
        "store": StoreStatus(counters={"written": 5}),
        "events_waiting": 0,
        "refusals": Counter(),
    }
    return ServiceState(**(values | changed))  # type: ignore[arg-type]


def core_at_work() -> Core:
    """Two cars, of which one has computed 4 of its 8 rows, twice, and the other one left."""
    core = Core()
    for event in [ModelAdded(MODEL), *arrival("car-1"), *arrival("car-2"), JobSubmitted(job(chunk_rows=8))]:
        core.handle(event, 0)  # type: ignore[arg-type]
    core.assign(0)
    core.handle(rows_of("car-1", "j1", Span(0, 0, 4), compute_ms=40.0, energy_mwh=4_000), 1)
    core.handle(rows_of("car-1", "j1", Span(0, 0, 4), compute_ms=40.0, energy_mwh=4_000), 2)
    core.handle(VehicleState("car-2", State(False, 1)), 3)
    return core


def about_vehicles(observer: Observer, now_ms: int) -> list[MetricPoint]:
    return [point for piece in observer.vehicles(now_ms) for point in piece]


def fields_of(points: list[MetricPoint], measurement: str, **tags: str) -> dict[str, object]:
    (found,) = [point for point in points if point.measurement == measurement and point.tags == tags]
    return dict(found.fields)


def test_points_hold_exactly_what_the_catalogue_lists_in_one_type_each() -> None:
    observer = Observer(core_at_work())
    about_vehicles(observer, 1)
    observer.core.handle(rows_of("car-1", "j1", Span(0, 4, 6)), 3)
    points = observer.fleet_wide(service(refusals=Counter(too_large=1)), 5) + about_vehicles(observer, 5)
    assert {point.measurement for point in points} == {
        name for name in MEASUREMENTS if not name.startswith("vehicle_state")
    }
    for point in points:
        measurement = MEASUREMENTS[point.measurement]
        assert tuple(point.tags) == measurement.tags
        assert set(point.fields) == {field.name for field in measurement.fields}
        for field in measurement.fields:
            assert isinstance(point.fields[field.name], str if field.kind is FieldKind.TEXT else int | float)
    idle = Observer(Core()).fleet_wide(service(refusals=Counter(too_large=1)), 5)
    kinds = {(p.measurement, name): type(value) for p in idle for name, value in p.fields.items()}
    kinds_at_work = {(p.measurement, name): type(value) for p in points for name, value in p.fields.items()}
    assert kinds.items() <= kinds_at_work.items()


def test_the_fleet_is_counted_by_state_reason_and_region() -> None:
    points = Observer(core_at_work()).fleet_wide(service(), 5)
    fleet = fields_of(points, "fleet_state")
    assert (fleet["vehicles"], fleet["online"], fleet["plugged"], fleet["eligible"]) == (2, 1, 1, 1)
    assert 0 < fleet["plugged_in_1h"] <= 1  # type: ignore[operator]
    assert fields_of(points, "fleet_reason", reason="offline") == {"vehicles": 1}
    region = {"vehicles": 2, "online": 1, "eligible": 1, "working": 1}
    assert fields_of(points, "fleet_region", region="unknown") == region


def test_jobs_waste_and_economics_are_what_the_core_counted() -> None:
    core = core_at_work()
    points = Observer(core).fleet_wide(service(), 5)
    jobs = fields_of(points, "job_state")
    assert (jobs["running"], jobs["rows"], jobs["rows_leased"]) == (1, 4, core.jobs["j1"].rows_leased)
    assert jobs["rows_waiting"] == 100 - 8
    assert fields_of(points, "job_waste", cause="duplicate") == {
        "rows_released": 0,
        "rows": 4,
        "compute_ms": 40.0,
        "energy_mwh": 4_000,
    }
    assert fields_of(points, "economics")["wasted_energy_mwh"] == 4_000


def test_a_job_is_late_by_how_far_its_expected_end_lies_after_its_deadline() -> None:
    core = core_at_work()
    core.handle(JobSubmitted(job("j2", rows=1000, deadline_s=2.0)), 0)
    points = Observer(core).fleet_wide(service(), 1_000)
    # 10 ms a row on one car: ten seconds of work, and one is left
    assert fields_of(points, "job_state")["lateness_s"] == pytest.approx(9.0)


def test_a_reason_that_is_gone_goes_down_to_zero() -> None:
    core = core_at_work()
    observer = Observer(core)
    observer.fleet_wide(service(), 5)
    for event in arrival("car-2", epoch=2):
        core.handle(event, 6)  # type: ignore[arg-type]
    points = observer.fleet_wide(service(), 7)
    assert fields_of(points, "fleet_reason", reason="offline") == {"vehicles": 0}


def test_counters_go_to_the_store_as_growth_and_gauges_as_they_are() -> None:
    observer = Observer(core_at_work())
    first = observer.fleet_wide(service(refusals=Counter(too_large=3)), 5)
    assert growth(first, []) == first
    observer.core.handle(rows_of("car-1", "j1", Span(1, 8, 12)), 6)
    second = growth(observer.fleet_wide(service(refusals=Counter(too_large=3, bad_json=2)), 7), first)
    assert fields_of(second, "economics")["rows"] == 0  # chunk 1 is car-2's
    assert fields_of(second, "job_state")["running"] == 1
    assert fields_of(second, "service_refusal", reason="too_large") == {"refused": 0}
    assert fields_of(second, "service_refusal", reason="bad_json") == {"refused": 2}
    assert fields_of(second, "service_refusal", reason="result_without_lease") == {"refused": 1}


def test_only_vehicles_that_changed_have_a_point_and_what_is_remembered_is_no_growth() -> None:
    core = core_at_work()
    observer = Observer(core)
    assert about_vehicles(observer, 5) == []
    assert about_vehicles(observer, 6) == []
    for event in arrival("car-3"):
        core.handle(event, 7)  # type: ignore[arg-type]
    core.handle(rows_of("car-1", "j1", Span(0, 4, 6), energy_mwh=10), 7)
    (changed, new) = about_vehicles(observer, 8)
    assert changed == MetricPoint(
        "vehicle_work",
        8,
        {"vehicle": "car-1", "region": "unknown"},
        {"reason": "eligible", "eligible": 1, "leases": 1, "rows": 2, "energy_mwh": 10, "pay_micro": 2},
    )
    assert (new.tags["vehicle"], new.fields["rows"]) == ("car-3", 0)


def test_delays_are_summed_and_the_worst_is_said_once() -> None:
    waits = Delay()
    waits.add(10, 2.0)
    waits.add(1, 80.0)
    observer = Observer(Core())
    measured = fields_of(observer.fleet_wide(service(telemetry=waits), 0), "service")
    assert (measured["telemetry"], measured["telemetry_wait_ms"]) == (11, 100.0)
    assert measured["telemetry_wait_worst_ms"] == 80.0
    assert fields_of(observer.fleet_wide(service(telemetry=waits), 1), "service")["telemetry_wait_worst_ms"] == 0.0


def test_what_lies_on_disk_counts_as_not_stored() -> None:
    away = StoreStatus("the server is away", lines_waiting=700, oldest_ms=1_000)
    measured = fields_of(Observer(Core()).fleet_wide(service(store=away, waiting_ms=5.0), 61_000), "service")
    assert (measured["store_lag_ms"], measured["store_waiting"], measured["store_trouble"]) == (60_000.0, 700, 1)
    measured = fields_of(Observer(Core()).fleet_wide(service(waiting_ms=5.0), 61_000), "service")
    assert (measured["store_lag_ms"], measured["store_waiting"], measured["store_trouble"]) == (5.0, 0, 0)


async def test_observing_hands_over_growth_each_time_and_vehicles_every_sixth() -> None:
    core = core_at_work()
    recorded: list[list[MetricPoint]] = []
    observing = asyncio.create_task(
        keep_observing(
            Observer(core), service, lambda: len(recorded), lambda points: recorded.append(list(points)), 0.0
        )
    )
    while len(recorded) < 8:
        await asyncio.sleep(0)
        core.fleet.live("rows_done")[:] += 1
    observing.cancel()
    single = [place for place, points in enumerate(recorded) if points[0].measurement == "vehicle_work"]
    assert single[0] == 7  # after the seventh round; the first only looks
    assert [fields_of(points, "economics")["rows"] for points in recorded[:2]] == [4, 0]
    assert {point.tags["vehicle"] for point in recorded[7]} == {"car-1", "car-2"}


def test_a_whole_fleet_is_told_of_in_pieces() -> None:
    core = Core()
    observer = Observer(core)
    assert list(observer.vehicles(0)) == []
    core.handle(telemetry([f"car-{number}" for number in range(2_500)]), 0)
    assert [len(piece) for piece in observer.vehicles(1)] == [1_000, 1_000, 500]


def test_what_was_not_taken_of_a_whole_fleet_is_told_the_next_time() -> None:
    core = Core()
    core.handle(telemetry([f"car-{number}" for number in range(2_500)]), 0)
    observer = Observer(core)
    assert list(observer.vehicles(0)) == []
    core.fleet.live("rows_done")[:] += 1
    broken_off = next(observer.vehicles(1))
    core.fleet.live("rows_done")[:10] += 5
    rest = about_vehicles(observer, 2)
    rows = Counter[str]()
    for point in [*broken_off, *rest]:
        rows[point.tags["vehicle"]] += int(point.fields["rows"])
    assert rows == {f"car-{number}": 6 if number < 10 else 1 for number in range(2_500)}
    assert len(rest) == 1_500 + 10


def test_the_last_look_is_at_the_fleet_and_at_the_vehicles() -> None:
    core = core_at_work()
    observer = Observer(core)
    about_vehicles(observer, 1)
    observer.fleet_wide(service(), 1)
    core.handle(rows_of("car-1", "j1", Span(0, 4, 6)), 2)
    recorded: list[MetricPoint] = []
    look_last(observer, service(), 3, recorded.extend)
    assert fields_of(recorded, "economics")["rows"] == 2
    assert fields_of(recorded, "vehicle_work", vehicle="car-1", region="unknown")["rows"] == 2


def test_regions_are_counted_by_name_as_far_as_is_sensible() -> None:
    core = Core()
    for number in range(2_000):
        caps = Caps(1, "1", "x", "CPU", "1", 1, 4, region=f"region {number}")
        core.handle(VehicleCaps(f"car-{number}", caps), 0)
    points = Observer(core).fleet_wide(service(), 5)
    regions = [point for point in points if point.measurement == "fleet_region"]
    assert len(regions) == 1_000
    assert fields_of(points, "fleet_region", region="region 7")["vehicles"] == 1
    assert fields_of(points, "fleet_region", region="unknown")["vehicles"] == 1_001
