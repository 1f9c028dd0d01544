"""The availability model: recovers hazards it was shown, shrinks, forgets, and keeps its state as bytes."""

import io
import math

import numpy as np
import pytest

from coordinator.availability import Availability, AvailabilityTerms, UnreadableState
from coordinator.hazard import MINUTE_MS, QUARTER_MS, FleetHazard, elapsed_bin, week_quarter

HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
MONDAY_MS = 4 * DAY_MS  # 1970-01-05
PRIOR = AvailabilityTerms().hazard.leave_per_minute
ONE = np.array([0])


def at(*times_ms: int) -> np.ndarray:
    return np.array(times_ms, dtype=np.int64)


def hear(model: Availability, row: int, at_ms: int, plugged: bool, **offset: int) -> None:
    model.observe(np.array([row]), at(at_ms), np.array([plugged]), **offset)


def live_through(
    model: Availability, rows: np.ndarray, days: int, leaves_at_h: float, begin_ms: int = MONDAY_MS
) -> int:
    """Cars that plug in at 18:00 and leave at the same time every day; the time at the end."""
    for day in range(days):
        for hour in np.arange(0, 24, 0.5):
            now_ms = begin_ms + day * DAY_MS + int(hour * HOUR_MS)
            plugged = not leaves_at_h <= hour < 18
            model.observe(rows, np.full(len(rows), now_ms), np.full(len(rows), plugged))
            model.advance(now_ms)
    return begin_ms + days * DAY_MS


def test_weeks_begin_on_monday_in_local_time() -> None:
    assert week_quarter(at(MONDAY_MS, MONDAY_MS + 7 * DAY_MS - 1, 0)).tolist() == [0, 671, 3 * 96]


def test_bins_of_time_plugged_grow_and_end() -> None:
    bins = elapsed_bin(at(-1, 0, QUARTER_MS, 2 * QUARTER_MS, 5 * HOUR_MS, 400 * DAY_MS))
    assert bins.tolist() == [0, 0, 1, 2, 6, 15]


def test_without_history_the_stated_prior_holds() -> None:
    model = Availability()
    hear(model, 0, MONDAY_MS, plugged=True)
    assert model.stay_probability(ONE, MONDAY_MS, 60)[0] == pytest.approx(math.exp(-60 * PRIOR))
    assert model.stay_minutes(ONE, MONDAY_MS, 0.95)[0] == pytest.approx(-math.log(0.95) / PRIOR)


def test_a_car_that_is_not_plugged_in_does_not_stay() -> None:
    model = Availability()
    hear(model, 0, MONDAY_MS, plugged=False)
    assert model.stay_probability(ONE, MONDAY_MS, 1)[0] == 0
    assert model.stay_minutes(ONE, MONDAY_MS, 0.5)[0] == 0


def test_a_known_hazard_is_recovered() -> None:
    rng = np.random.default_rng(3)
    cars, true_rate = 400, 0.004
    model, rows = Availability(), np.arange(cars)
    plugged = np.ones(cars, dtype=np.bool_)
    for step in range(7 * 96):
        now_ms = MONDAY_MS + step * QUARTER_MS
        model.observe(rows, np.full(cars, now_ms), plugged)
        model.advance(now_ms)
        plugged = np.where(plugged, rng.random(cars) > 1 - math.exp(-15 * true_rate), rng.random(cars) < 0.2)
    model.fleet.fit()
    weights = model.fleet.minutes
    assert np.average(model.fleet.leave, weights=weights) == pytest.approx(true_rate, rel=0.08)


def test_the_fleet_learns_the_hour_at_which_cars_leave() -> None:
    model, rows = Availability(), np.arange(30)
    end_ms = live_through(model, rows, days=14, leaves_at_h=7)
    model.make_room(31)
    hear(model, 30, end_ms, plugged=True)  # a car without history of its own
    new = np.array([30])
    at_six = model.stay_probability(new, end_ms + 6 * HOUR_MS + 40 * MINUTE_MS, 60)[0]
    at_two = model.stay_probability(new, end_ms + 2 * HOUR_MS, 60)[0]
    assert at_six < 0.5
    assert at_two > 0.9


def test_a_car_with_history_goes_by_its_own() -> None:
    model = Availability(teaching=np.array([False, False]))
    end_ms = live_through(model, np.array([0]), days=28, leaves_at_h=7)
    hear(model, 1, end_ms, plugged=True)
    own, stranger = model.stay_probability(np.array([0, 1]), end_ms + 6 * HOUR_MS + 30 * MINUTE_MS, 60)
    assert own < stranger
    assert stranger == pytest.approx(math.exp(-60 * PRIOR))


def test_one_departure_changes_little() -> None:
    model = Availability(teaching=np.array([False]))
    end_ms = live_through(model, ONE, days=1, leaves_at_h=7)
    assert model.stay_probability(ONE, end_ms + 6 * HOUR_MS + 30 * MINUTE_MS, 60)[0] > 0.75


def test_cars_that_teach_nobody_leave_the_fleet_alone() -> None:
    model = Availability(teaching=np.array([False]))
    live_through(model, ONE, days=14, leaves_at_h=7)
    untouched = FleetHazard()
    assert np.array_equal(model.fleet.leave, untouched.leave)
    assert model.column["unplugged"][0] > 10


def test_what_stopped_learning_still_knows_who_is_plugged_in() -> None:
    model = Availability(learns=False)
    live_through(model, ONE, days=3, leaves_at_h=7)
    assert model.column["unplugged"][0] == 0
    assert model.column["plugged_since_ms"][0] == MONDAY_MS + 2 * DAY_MS + 18 * HOUR_MS


def test_silence_is_not_counted() -> None:
    model = Availability()
    hear(model, 0, MONDAY_MS, plugged=True)
    hear(model, 0, MONDAY_MS + 3 * HOUR_MS, plugged=False)
    assert model.fleet.minutes.sum() == 0
    assert model.fleet.unplugged.sum() == 0


def test_a_clock_that_goes_back_is_not_counted() -> None:
    model = Availability()
    hear(model, 0, MONDAY_MS + HOUR_MS, plugged=True)
    hear(model, 0, MONDAY_MS, plugged=False)
    assert model.fleet.unplugged.sum() == 0


def test_time_is_counted_in_the_quarter_and_bin_in_which_it_was() -> None:
    model = Availability()
    hear(model, 0, MONDAY_MS + 10 * MINUTE_MS, plugged=True, offset_ms=HOUR_MS)
    hear(model, 0, MONDAY_MS + 40 * MINUTE_MS, plugged=False, offset_ms=HOUR_MS)
    minutes = {(4, 0): 5.0, (5, 0): 15.0, (6, 1): 10.0}
    found = {(int(q), int(b)): model.fleet.minutes[q, b] for q, b in np.argwhere(model.fleet.minutes)}
    # The quarter that begins five minutes after plugging in is counted whole in the bin in which it begins.
    assert found == minutes
    assert model.fleet.unplugged[6, 1] == 1


def test_counts_are_forgotten_by_halves() -> None:
    model = Availability()
    model.advance(MONDAY_MS)
    hear(model, 0, MONDAY_MS, plugged=True)
    hear(model, 0, MONDAY_MS + HOUR_MS, plugged=False)
    model.advance(MONDAY_MS + int(model.terms.half_life_days * DAY_MS))
    assert model.column["unplugged"][0] == pytest.approx(0.5)
    assert model.fleet.unplugged.sum() == pytest.approx(0.5 ** (90 / 120))


def test_a_quiet_month_is_noticed() -> None:
    model, rows = Availability(), np.arange(30)
    end_ms = live_through(model, rows, days=28, leaves_at_h=7)
    before = model.fleet.leave[28].max()
    for hour in np.arange(0, 14 * 24, 0.5):  # nobody leaves for two weeks
        now_ms = end_ms + int(hour * HOUR_MS)
        model.observe(rows, np.full(30, now_ms), np.ones(30, dtype=np.bool_))
        model.advance(now_ms)
    assert model.fleet.leave[28].max() < 0.75 * before


def test_what_is_kept_for_a_quarter_is_not_used_for_a_car_that_came_anew() -> None:
    model = Availability()
    hear(model, 0, MONDAY_MS, plugged=False)
    assert model.stay_probability(ONE, MONDAY_MS + 1, 30)[0] == 0
    hear(model, 0, MONDAY_MS + 2, plugged=True)
    hear(model, 5, MONDAY_MS + 2, plugged=True)  # more rows than before
    assert model.stay_probability(np.array([0, 5]), MONDAY_MS + 3, 30) == pytest.approx(math.exp(-30 * PRIOR))


def test_far_horizons_agree_with_near_ones() -> None:
    model, rows = Availability(), np.arange(5)
    end_ms = live_through(model, rows, days=10, leaves_at_h=7)
    now_ms = end_ms + 5 * HOUR_MS + 7 * MINUTE_MS
    far = model.stay_minutes(rows, now_ms, 0.5, most_minutes=600)
    assert model.stay_probability(rows, now_ms, float(far[0]))[0] == pytest.approx(0.5)
    assert far[0] > 60


def test_a_forecast_begins_with_the_present_and_stays_a_share() -> None:
    model, rows = Availability(), np.arange(20)
    end_ms = live_through(model, rows, days=14, leaves_at_h=7)
    shares = model.forecast(rows, end_ms + 6 * HOUR_MS, 12 * 60)
    assert len(shares) == 49
    assert shares[0] == 1
    assert np.all((shares >= 0) & (shares <= 1))
    assert shares[8] < 0.5  # at 08:00
    assert model.forecast(np.arange(0), end_ms, 60).tolist() == [0]


def test_a_forecast_of_a_mixed_fleet_lets_cars_come() -> None:
    model, rows = Availability(), np.arange(20)
    end_ms = live_through(model, rows, days=14, leaves_at_h=7)
    now_ms = end_ms + 16 * HOUR_MS
    model.observe(rows, np.full(20, now_ms), np.zeros(20, dtype=np.bool_))
    shares = model.forecast(rows, now_ms, 6 * 60)
    assert shares[0] == 0
    assert shares[-1] > 0.3


def test_state_survives_as_bytes() -> None:
    model, rows = Availability(), np.arange(3)
    end_ms = live_through(model, rows, days=10, leaves_at_h=7)
    model.fleet.fit()
    ids, again = Availability.from_bytes(model.to_bytes(["a", "b", "c"]))
    assert ids == ["a", "b", "c"]
    assert len(again) == 3
    now_ms = end_ms + 6 * HOUR_MS
    assert np.array_equal(again.stay_probability(rows, now_ms, 60), model.stay_probability(rows, now_ms, 60))
    assert (again.fitted_ms, again.forgot_ms) == (model.fitted_ms, model.forgot_ms)
    assert again.to_bytes(ids) == model.to_bytes(ids)


def test_an_empty_state_survives_too() -> None:
    ids, again = Availability.from_bytes(Availability().to_bytes([]))
    assert (ids, len(again)) == ([], 0)


def _saved(**changes: object) -> bytes:
    with np.load(io.BytesIO(Availability().to_bytes(["a"]))) as archive:
        arrays = {name: archive[name] for name in archive.files}
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 no archive",
        b"\x93NUMPY",
        Availability().to_bytes([])[:-200],
        _saved(version=None),
        _saved(version=np.array(99)),
        _saved(version=np.array([1, 2])),
        _saved(times=np.array([1])),
        _saved(ids=np.array([0xFF], dtype=np.uint8)),
        _saved(ids=np.array([1.5])),
        _saved(car_heard_ms=None),
        _saved(fleet_minutes=np.zeros(3)),
        _saved(fleet_minutes=np.full((672, 16), np.nan)),
        _saved(fleet_unplugged=np.full((672, 16), -1.0)),
        _saved(car_unplugged=np.array([object()], dtype=object)),
    ],
)
def test_what_is_no_state_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UnreadableState) as caught:
        Availability.from_bytes(data)
    assert "\n" not in str(caught.value)
