"""What work draws, measured or set, and zero extra for being awake while the car charges."""

from fleet_wire.signals import Signals
from vehicle_agent.power import PowerMeter


def learned(*readings: Signals) -> tuple[float, float]:
    meter = PowerMeter(25.0, 260.0)
    for signals in readings:
        meter.learn(signals)
    return meter.compute_w, meter.awake_w


def test_a_car_that_measures_nothing_draws_what_is_set() -> None:
    assert learned(Signals(plugged=True)) == (25.0, 260.0)


def test_what_is_measured_counts_and_is_remembered_while_it_idles() -> None:
    busy, idle = Signals(plugged=True, compute_power_w=31.0), Signals(plugged=True, compute_power_w=0.0)
    assert learned(busy)[0] == learned(busy, idle)[0] == 31.0
    assert learned(idle)[0] == 25.0


def test_with_the_cable_out_it_is_forgotten() -> None:
    assert learned(Signals(plugged=True, compute_power_w=31.0), Signals(plugged=False))[0] == 25.0
    assert learned(Signals(plugged=True, compute_power_w=31.0), Signals())[0] == 25.0


def test_charging_keeps_it_awake_anyway() -> None:
    assert learned(Signals(charging=True, awake_power_w=300.0))[1] == 0.0
    assert learned(Signals(charging=False, awake_power_w=300.0))[1] == 300.0
    assert learned(Signals(awake_power_w=300.0))[1] == 300.0
    assert learned(Signals(charging=True), Signals(charging=False))[1] == 260.0


def test_what_is_drawn_for_a_share_of_the_time_says_what_all_of_the_time_would_draw() -> None:
    meter = PowerMeter(25.0, 260.0)
    meter.learn(Signals(plugged=True, compute_power_w=20.0), 0.8)
    assert meter.compute_w == 25.0
