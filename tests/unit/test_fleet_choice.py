"""The fleet of a demo: drawn from real sessions by the seed alone, with cars that leave, stay and come."""

import pytest

from simulator.fleet import SOON_MS, choose_fleet
from simulator.sessions import load_traces
from simulator.traces import HOUR_MS, plug_in_at


def test_the_sample_has_one_trace_a_user() -> None:
    traces = load_traces()
    assert (len(traces), sum(len(trace.plug_ins) for trace in traces)) == (85, 1704)


@pytest.mark.parametrize("seed", range(10))
def test_a_fleet_has_cars_that_leave_stay_and_come(seed: int) -> None:
    fleet = choose_fleet(24, seed)
    plug_ins = [plug_in_at(car.trace, fleet.start_ms) for car in fleet.cars]
    plugged = [plug_in for plug_in in plug_ins if plug_in is not None]
    leaving = [plug_in for plug_in in plugged if plug_in.stop_ms <= fleet.start_ms + SOON_MS]
    assert (len(plugged), len(leaving)) == (16, 12)
    assert fleet.start_ms % (24 * HOUR_MS) == 6.25 * HOUR_MS
    later = fleet.start_ms + SOON_MS
    assert sum(plug_in_at(car.trace, later) is not None for car in fleet.cars) >= 4


@pytest.mark.parametrize("vehicles", [1, 2, 24, 200])
def test_the_seed_alone_decides(vehicles: int) -> None:
    fleet = choose_fleet(vehicles, 3)
    assert fleet == choose_fleet(vehicles, 3)
    assert fleet != choose_fleet(vehicles, 4)
    assert len({car.vehicle for car in fleet.cars}) == vehicles


def test_ids_say_nothing_but_a_number() -> None:
    assert [car.vehicle for car in choose_fleet(3, 0).cars] == ["car-01", "car-02", "car-03"]
