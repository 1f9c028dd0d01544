"""The joint between fleet view and availability model: columns, time scale, history, and sizes of chunks."""

import numpy as np
import pytest

from coordinator.availability import AvailabilityTerms, UnreadableState
from coordinator.commands import GrantLease
from coordinator.core import Core, CorePolicy
from coordinator.events import JobSubmitted, ModelAdded, PlugHistory, Tick
from coordinator.fleet_view import FleetView
from coordinator.foresight import Foresight, ForesightTerms
from coordinator.rules.eligibility import Reason
from fleet_wire.messages import Span
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of, telemetry

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
NOW_MS = 1_760_000_000_000 // HOUR_MS * HOUR_MS
PRIOR = AvailabilityTerms().hazard.leave_per_minute


def hear(fleet: FleetView, vehicles: list[str], seq: int, now_ms: int, plugged: int) -> None:
    fleet.apply(telemetry(vehicles, seq=seq, now_ms=now_ms, plugged=plugged))


def history(*readings: tuple[str, int, int]) -> PlugHistory:
    vehicle, received_ms, plugged = zip(*readings, strict=True)
    return PlugHistory(
        np.array(vehicle, dtype=object), np.array(received_ms, dtype=np.int64), np.array(plugged, dtype=np.int8)
    )


def no_offsets(names: object, at_ms: int) -> dict[str, int]:
    return {}


def test_a_look_fills_the_columns() -> None:
    fleet = FleetView()
    foresight = Foresight(ForesightTerms(), fleet)
    hear(fleet, ["in"], 1, NOW_MS, plugged=1)
    hear(fleet, ["out"], 1, NOW_MS, plugged=0)
    fleet.row("silent")
    foresight.look(NOW_MS)
    assert fleet.live("plugged_since_ms").tolist() == [NOW_MS, -1, -1]
    assert fleet.live("stay_ms")[0] == pytest.approx(-np.log(0.95) / PRIOR * MINUTE_MS, rel=1e-5)
    assert np.isnan(fleet.live("stay_ms")[1:]).all()
    assert foresight.stay_chances() == pytest.approx([np.exp(-PRIOR), 1, 1])


def test_a_look_is_due_once_a_second_and_after_a_clock_was_set_back() -> None:
    fleet = FleetView()
    foresight = Foresight(ForesightTerms(), fleet)
    foresight.look(NOW_MS)
    hear(fleet, ["car"], 1, NOW_MS, plugged=1)
    foresight.look(NOW_MS + 999)
    assert fleet.live("plugged_since_ms").tolist() == [-1]
    assert foresight.stay_chances().tolist() == [1]
    foresight.look(NOW_MS - HOUR_MS)
    assert fleet.live("plugged_since_ms").tolist() == [NOW_MS]


def test_leaving_and_coming_are_learned_from_telemetry() -> None:
    fleet = FleetView()
    foresight = Foresight(ForesightTerms(), fleet)
    for minute in range(0, 180, 5):
        now_ms = NOW_MS + minute * MINUTE_MS
        hear(fleet, ["car"], minute + 1, now_ms, plugged=int(not 60 <= minute < 120))
        foresight.look(now_ms)
    model = foresight.model
    assert model.fleet.minutes.sum() == pytest.approx(60 + 55)
    assert model.fleet.unplugged.sum() == 1
    assert model.fleet.plugged_in.sum() == 1
    assert fleet.column["plugged_since_ms"][0] == NOW_MS + 120 * MINUTE_MS


def test_the_owners_timezone_counts_else_the_fleets() -> None:
    fleet = FleetView(timezones=["Europe/Oslo", "Asia/Tokyo"], utc_offsets_ms={"Europe/Oslo": HOUR_MS})
    fleet.utc_offsets_ms["Asia/Tokyo"] = 9 * HOUR_MS
    hear(fleet, ["oslo", "tokyo"], 1, NOW_MS, plugged=1)
    fleet.column["timezone"][1] = 1
    foresight = Foresight(ForesightTerms(), fleet)
    foresight.look(NOW_MS)
    assert foresight.model.column["offset_ms"][:2].tolist() == [HOUR_MS, 9 * HOUR_MS]


def test_cars_of_a_replay_live_faster_than_the_clock() -> None:
    fleet = FleetView()
    foresight = Foresight(ForesightTerms(time_scale=60.0), fleet)
    hear(fleet, ["car"], 1, NOW_MS, plugged=1)
    foresight.look(NOW_MS)
    assert fleet.live("stay_ms")[0] == pytest.approx(-np.log(0.95) / PRIOR * 1000, rel=1e-5)
    assert foresight.stay_chances()[0] == pytest.approx(np.exp(-PRIOR))
    assert fleet.live("plugged_since_ms")[0] == pytest.approx(NOW_MS, abs=1)
    hear(fleet, ["car"], 2, NOW_MS + MINUTE_MS, plugged=1)
    foresight.look(NOW_MS + MINUTE_MS)
    assert foresight.model.fleet.minutes.sum() == pytest.approx(60)
    assert foresight.heard_until_ms() == pytest.approx(NOW_MS + MINUTE_MS, abs=1)


def test_history_is_learned_once() -> None:
    fleet = FleetView()
    foresight = Foresight(ForesightTerms(), fleet)
    readings = history(
        ("a", NOW_MS, 1),
        ("b", NOW_MS + 1000, 0),
        ("a", NOW_MS + 20 * MINUTE_MS, 0),
        ("a", NOW_MS + 30 * MINUTE_MS, 1),
        ("b", NOW_MS + HOUR_MS, 0),
        ("a", NOW_MS + HOUR_MS + 30 * MINUTE_MS, 1),
    )
    asked: list[int] = []

    def offsets(names: object, at_ms: int) -> dict[str, int]:
        asked.append(at_ms)
        return {"UTC": 2 * HOUR_MS}

    foresight.learn(readings, offsets)
    assert foresight.model.fleet.minutes.sum() == pytest.approx(80)
    assert foresight.model.fleet.unplugged.sum() == 1
    assert foresight.model.column["offset_ms"][:2].tolist() == [2 * HOUR_MS] * 2
    assert asked == [NOW_MS, NOW_MS + HOUR_MS]
    foresight.learn(readings, offsets)
    assert foresight.model.fleet.minutes.sum() == pytest.approx(80)
    foresight.learn(
        PlugHistory(np.zeros(0, dtype=object), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int8)), no_offsets
    )


def test_what_was_learned_finds_its_cars_in_another_order() -> None:
    before = Foresight(ForesightTerms(), FleetView())
    before.learn(
        history(("a", NOW_MS, 1), ("b", NOW_MS, 0), ("a", NOW_MS + HOUR_MS, 0), ("b", NOW_MS + HOUR_MS, 1)), no_offsets
    )
    fleet = FleetView()
    for vehicle in ("c", "b"):
        fleet.row(vehicle)
    after = Foresight(ForesightTerms(), fleet)
    after.restore(before.to_bytes())
    assert fleet.ids == ["c", "b", "a"]
    assert after.model.column["unplugged"].tolist() == [0, 0, 1]
    assert after.model.column["plugged_since_ms"].tolist() == [-1, NOW_MS + HOUR_MS, -1]
    assert after.heard_until_ms() == before.heard_until_ms() == NOW_MS + HOUR_MS
    with pytest.raises(UnreadableState):
        after.restore(b"garbage")


def test_a_forecast_asks_only_connected_cars() -> None:
    fleet = FleetView()
    foresight = Foresight(ForesightTerms(), fleet)
    assert foresight.plugged_forecast(NOW_MS) == 0
    hear(fleet, ["a", "b"], 1, NOW_MS, plugged=1)
    foresight.look(NOW_MS)
    fleet.column["online"][0] = True
    assert foresight.plugged_forecast(NOW_MS) == pytest.approx(np.exp(-60 * PRIOR), abs=1e-3)


def _core(leave_per_minute: float) -> Core:
    hazard = AvailabilityTerms().hazard
    terms = AvailabilityTerms(
        hazard=type(hazard)(leave_per_minute=leave_per_minute, most_per_minute=max(0.2, leave_per_minute))
    )
    core = Core(CorePolicy(foresight=ForesightTerms(terms)))
    core.handle(ModelAdded(MODEL), NOW_MS)
    for event in arrival("car", now_ms=NOW_MS):
        core.handle(event, NOW_MS)  # type: ignore[arg-type]
    return core


@pytest.mark.parametrize(
    ("leave_per_minute", "reason"), [(0.02, Reason.ELIGIBLE), (0.04, Reason.LEAVES_SOON), (0.5, Reason.LEAVES_SOON)]
)
def test_a_car_that_leaves_soon_gets_no_work(leave_per_minute: float, reason: Reason) -> None:
    core = _core(leave_per_minute)
    core.handle(Tick(), NOW_MS + 1000)
    assert core.reasons(NOW_MS + 2000).tolist() == [reason]


def test_a_working_car_stops_later_than_it_would_start() -> None:
    core = _core(0.04)
    core.fleet.live("was_eligible")[:] = True
    core.handle(Tick(), NOW_MS + 1000)
    assert core.reasons(NOW_MS + 2000).tolist() == [Reason.ELIGIBLE]


def test_a_chunk_takes_no_longer_than_the_car_stays() -> None:
    """A row takes ten minutes, and the car stays for 38 minutes with a chance of 95 %."""
    core = _core(PRIOR)
    core.handle(JobSubmitted(job("slow", rows=400, chunk_rows=50)), NOW_MS)
    first = [command.lease for command in core.assign(NOW_MS) if isinstance(command, GrantLease)]
    lease = first[0]
    row_ms = 10 * MINUTE_MS
    span = Span(lease.chunk, lease.start, lease.start + 1)
    core.handle(rows_of("car", "slow", span, compute_ms=float(row_ms)), NOW_MS)
    for held in first:
        core.handle(rows_of("car", "slow", Span(held.chunk, held.start, held.stop), compute_ms=row_ms * 50.0), NOW_MS)
    core.handle(Tick(), NOW_MS + 1000)
    given = [command.lease for command in core.assign(NOW_MS + 1000) if isinstance(command, GrantLease)]
    assert sum(each.stop - each.start for each in given) == 3
