"""A simulated car: its signals follow its trace, stay in their ranges, and need nothing but the trace and the time."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_wire.signals import SIGNAL_PATHS, Signals
from simulator.car import Replay, SimulatedCar
from simulator.traces import HOUR_MS, MINUTE_MS, CarTrace, PlugIn, charge_percent_at, parked, signals_at

NIGHT = CarTrace(
    (PlugIn(0, 10 * HOUR_MS, 40.0), PlugIn(20 * HOUR_MS, 30 * HOUR_MS, 30.0)), 60.0, 6.0, departure_known=True
)


@st.composite
def traces(draw: st.DrawFn) -> CarTrace:
    ends = sorted(draw(st.sets(st.integers(0, 72 * 60), min_size=2, max_size=12)))
    plug_ins = tuple(
        PlugIn(start * MINUTE_MS, stop * MINUTE_MS, draw(st.floats(0, 100)))
        for start, stop in zip(ends[::2], ends[1::2], strict=False)
    )
    return CarTrace(plug_ins, draw(st.floats(5, 100)), draw(st.floats(2, 150)), departure_known=draw(st.booleans()))


moments = st.integers(-24 * 60, 96 * 60).map(lambda minute: minute * MINUTE_MS)


@given(traces(), moments)
def test_signals_keep_to_the_trace_and_to_their_ranges(trace: CarTrace, now_ms: int) -> None:
    signals = signals_at(trace, now_ms)
    plugged = any(plug_in.start_ms <= now_ms < plug_in.stop_ms for plug_in in trace.plug_ins)
    assert signals.plugged is plugged
    assert signals.link_metered is not plugged
    assert not (signals.moving and plugged)
    assert not (signals.charging and not plugged)
    blockers = (signals.update_pending, signals.camp_mode, signals.sentry_mode)
    assert (blockers, signals.battery_capacity_kwh) == ((False, False, False), trace.battery_kwh)
    assert (signals.departure_ms is not msgspec.UNSET) is (plugged and trace.departure_known)
    # Strict conversion checks every range of the table of signals.
    assert msgspec.convert(msgspec.to_builtins(signals), Signals) == signals
    assert signals == signals_at(trace, now_ms)


@given(traces(), moments)
def test_charge_never_falls_while_plugged_in(trace: CarTrace, now_ms: int) -> None:
    for plug_in in trace.plug_ins:
        if plug_in.start_ms <= now_ms < plug_in.stop_ms:
            assert plug_in.charge_percent <= charge_percent_at(trace, now_ms) <= 100


def test_a_night_and_a_day() -> None:
    seen = {}
    for hour in (0, 3, 8, 10.25, 15, 19.75, 20):
        signals = signals_at(NIGHT, int(hour * HOUR_MS))
        seen[hour] = (
            signals.plugged,
            signals.charging,
            signals.moving,
            round(charge_percent_at(NIGHT, int(hour * HOUR_MS))),
        )
    assert seen == {
        0: (True, True, False, 40),
        3: (True, True, False, 70),
        8: (True, False, False, 100),
        10.25: (False, False, True, 98),
        15: (False, False, False, 65),
        19.75: (False, False, True, 32),
        20: (True, True, False, 30),
    }


def test_the_battery_warms_while_it_charges_and_cools_afterwards() -> None:
    degrees = [signals_at(NIGHT, int(hour * HOUR_MS)).battery_temperature_c for hour in (0, 1, 6, 9, 15)]
    assert degrees == [pytest.approx(value, abs=0.1) for value in (8.0, 15.6, 20.0, 8.6, 8.0)]


def test_all_signals_are_known_but_the_agents_and_the_unsaid_departure_charge() -> None:
    signals = SimulatedCar(NIGHT, Replay(0, 0)).read(0)
    unknown = {name for name in SIGNAL_PATHS if getattr(signals, name) is msgspec.UNSET}
    assert unknown == {"link_month_bytes", "free_slots", "refusal", "departure_charge_percent"}


def test_a_parked_car_stays_plugged_in() -> None:
    for days in (0, 1, 1000):
        signals = signals_at(parked(0), days * 24 * HOUR_MS)
        assert (signals.plugged, signals.moving, signals.opted_in) == (True, False, True)


@pytest.mark.parametrize(
    "plug_ins", [(PlugIn(5, 9, 50.0), PlugIn(8, 12, 50.0)), (PlugIn(8, 12, 50.0), PlugIn(2, 4, 50.0))]
)
def test_a_trace_out_of_order_is_refused(plug_ins: tuple[PlugIn, ...]) -> None:
    with pytest.raises(ValueError, match="in order"):
        CarTrace(plug_ins, 60.0, 11.0)


def test_a_car_plays_its_trace_at_the_speed_up() -> None:
    car = SimulatedCar(NIGHT, Replay(trace_ms=8 * HOUR_MS, start_ms=1_000_000, speed_up=360))
    leaves_ms = 1_000_000 + 20_000
    before, after = car.read(leaves_ms - 1), car.read(leaves_ms)
    assert (before.plugged, before.departure_ms) == (True, leaves_ms)
    assert (after.plugged, after.moving, after.departure_ms) == (False, True, msgspec.UNSET)


def test_computing_takes_power_and_makes_heat() -> None:
    car = SimulatedCar(parked(0), Replay(0, 0))
    seen = [(idle := car.read(0)).compute_power_w, idle.compute_temperature_c]
    car.set_computing(1.0)
    seen += [(busy := car.read(60_000)).compute_power_w, busy.compute_temperature_c]
    car.set_computing(0.0)
    seen += [(idle := car.read(600_000)).compute_power_w, idle.compute_temperature_c]
    assert seen == [0.0, 35.0, 25.0, pytest.approx(60.7, abs=0.1), 0.0, pytest.approx(35.0, abs=0.1)]


async def test_a_pulled_cable_is_announced() -> None:
    car = SimulatedCar(NIGHT, Replay(trace_ms=9 * HOUR_MS, start_ms=0, speed_up=HOUR_MS / 20))
    async with asyncio.timeout(60):
        await car.changed(0)  # the cable is pulled after 20 ms
    assert car.read(20).plugged is False


@given(st.integers(0, 1 << 42), st.integers(0, 1 << 42), st.floats(0.1, 5000), st.integers(-(10**9), 10**9))
def test_wall_time_is_never_before_the_moment_of_the_trace(trace_ms: int, start_ms: int, speed: float, ms: int) -> None:
    replay = Replay(trace_ms, start_ms, speed)
    moment = trace_ms + ms
    wall_ms = replay.to_wall_ms(moment)
    assert wall_ms is not None
    assert replay.to_trace_ms(wall_ms) >= moment - 1


async def test_a_car_stands_still_until_it_is_told_to_play() -> None:
    car = SimulatedCar(NIGHT, Replay(trace_ms=9 * HOUR_MS, start_ms=0, speed_up=0))
    assert (car.read(0).plugged, car.read(10**9).plugged) == (True, True)
    waiting = asyncio.create_task(car.changed(10**9))
    await asyncio.sleep(0)
    car.play(Replay(trace_ms=9 * HOUR_MS, start_ms=10**9, speed_up=HOUR_MS))
    async with asyncio.timeout(60):
        await waiting
    assert car.read(10**9 + 1).plugged is False
