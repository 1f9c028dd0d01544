"""Whatever cars do, chances are chances, fall with time, and survive as bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.availability import Availability
from coordinator.hazard import MINUTE_MS

ROWS = np.arange(4)
START_MS = 1_600_000_000_000

steps = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.integers(0, 180),
        st.sampled_from([-12, 0, 1, 14]),
    ),
    max_size=25,
)


def lived(history: list[tuple[list[bool], int, int]]) -> tuple[Availability, int]:
    model, now_ms = Availability(), START_MS
    for plugged, minutes, offset_h in history:
        now_ms += minutes * MINUTE_MS
        model.observe(ROWS, np.full(4, now_ms), np.array(plugged), offset_h * 3_600_000)
        model.advance(now_ms)
    model.make_room(4)
    model.fleet.fit()
    return model, now_ms


@given(steps, st.floats(0, 400), st.floats(0, 400))
def test_the_longer_the_less_likely(history: list[tuple[list[bool], int, int]], one: float, other: float) -> None:
    model, now_ms = lived(history)
    short, long = (model.stay_probability(ROWS, now_ms, minutes) for minutes in sorted((one, other)))
    assert np.all((long >= 0) & (long <= short) & (short <= 1))
    plugged = model.column["plugged_since_ms"][ROWS] >= 0
    assert np.array_equal(model.stay_probability(ROWS, now_ms, 0), plugged.astype(float))


@given(steps, st.floats(0.5, 0.999))
def test_the_time_with_a_chance_has_that_chance(history: list[tuple[list[bool], int, int]], least: float) -> None:
    model, now_ms = lived(history)
    for row, minutes in enumerate(model.stay_minutes(ROWS, now_ms, least, most_minutes=90)):
        chance = model.stay_probability(ROWS, now_ms, float(minutes))[row]
        assert minutes == 0 or chance >= least - 1e-6
        assert minutes in {0, 90} or abs(chance - least) < 1e-5


@given(steps)
def test_state_survives_and_goes_on_alike(history: list[tuple[list[bool], int, int]]) -> None:
    model, now_ms = lived(history)
    ids, again = Availability.from_bytes(model.to_bytes(["a", "b", "c", "d"]))
    assert ids == ["a", "b", "c", "d"]
    for each in (model, again):
        each.observe(ROWS, np.full(4, now_ms + 60 * MINUTE_MS), np.array([True, False, True, False]))
        each.fleet.fit()
    assert again.to_bytes(ids) == model.to_bytes(ids)


@given(steps, st.integers(0, 2000))
def test_a_forecast_is_a_share_of_the_fleet(history: list[tuple[list[bool], int, int]], minutes: int) -> None:
    model, now_ms = lived(history)
    shares = model.forecast(ROWS, now_ms, minutes)
    assert np.all((shares >= -1e-9) & (shares <= 1 + 1e-9))
    assert shares[0] == np.mean(model.column["plugged_since_ms"][ROWS] >= 0)
