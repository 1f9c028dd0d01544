"""Cars that can't be heard any more: their rows go elsewhere at once, nobody is blamed, and nothing is kept twice."""

from itertools import pairwise

import numpy as np
import pytest

from coordinator.commands import AddRows, Command, EndLease, SendControl
from coordinator.core import Core
from coordinator.events import JobSubmitted, ModelAdded, Tick, VehiclesHeard, VehicleState
from coordinator.model import LeaseEnd
from coordinator.rules.eligibility import Reason
from coordinator.rules.silence import SilenceLimits, are_silent
from fleet_wire.messages import Beat, Cancel, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of
from tests.unit.test_core import grants

CARS = ("car-1", "car-2", "car-3")


def beats(*vehicles: str, epoch: int = 1) -> VehiclesHeard:
    return VehiclesHeard(vehicles, [(vehicle, Beat(epoch, 1_000)) for vehicle in vehicles])


@pytest.fixture
def core() -> Core:
    """Three cars that hold ten rows each; the last has another job's, too."""
    core = Core()
    events = [event for car in CARS for event in arrival(car)]
    for event in (ModelAdded(MODEL), *events, beats(*CARS), JobSubmitted(job(rows=30, chunk_rows=10))):
        core.handle(event, 0)  # type: ignore[arg-type]
    assert grants(core.assign(0)) == [("car-1", 0, 10), ("car-2", 10, 20), ("car-3", 20, 30)]
    return core


def pass_time(core: Core, until_ms: int, *speaking: str, step_ms: int = 100, since_ms: int = 0) -> list[Command]:
    """Ticks, with a beat of `speaking` cars every second."""
    commands: list[Command] = []
    for before_ms, now_ms in pairwise(range(since_ms, until_ms + 1, step_ms)):
        if speaking and now_ms // 1000 > before_ms // 1000:
            commands += core.handle(beats(*speaking), now_ms)
        commands += core.handle(Tick(), now_ms)
    return commands


def test_rows_of_a_silent_car_are_given_to_others_although_those_have_enough_to_do(core: Core) -> None:
    assert pass_time(core, 2_000, "car-1", "car-3") == []
    told = pass_time(core, 2_100, "car-1", "car-3", since_ms=2_000)
    assert told == [EndLease("j1", 1, LeaseEnd.LOST, 10, 2_100), SendControl("car-2", Cancel("j1", [1]))]
    assert [span for _, *span in grants(core.assign(2_100))] == [[10, 20]]
    assert core.counters["vehicle_silent"] == 1


def test_a_car_that_comes_back_in_time_loses_nothing_and_no_row_is_kept_twice(core: Core) -> None:
    pass_time(core, 2_100, "car-1", "car-3")
    [(other, _, _)] = grants(core.assign(2_100))
    assert core.reasons(2_100)[core.fleet.index["car-2"]] == Reason.OFFLINE
    core.handle(VehiclesHeard({"car-2"}), 2_500)
    assert core.reasons(2_500)[core.fleet.index["car-2"]] == Reason.ELIGIBLE
    kept = core.handle(rows_of("car-2", "j1", Span(1, 10, 16)), 2_500)[0]
    assert isinstance(kept, AddRows)
    assert [(piece.start, piece.stop) for piece in kept.rows.pieces] == [(10, 16)]
    twice = core.handle(rows_of(other, "j1", Span(3, 10, 20)), 2_600)[0]
    assert isinstance(twice, AddRows)
    assert [(piece.start, piece.stop) for piece in twice.rows.pieces] == [(16, 20)]
    assert core.fleet.column["strikes"].sum() == 0


def test_one_that_stays_silent_gets_no_work(core: Core) -> None:
    pass_time(core, 2_100, "car-1", "car-3")
    core.assign(2_100)
    core.handle(JobSubmitted(job("j2", rows=30, chunk_rows=10)), 2_200)
    assert {vehicle for vehicle, *_ in grants(core.assign(2_200))} <= {"car-1", "car-3"}


def test_whatever_a_car_says_is_a_sign_of_life(core: Core) -> None:
    for now_ms in range(1_500, 10_000, 1_500):
        core.handle(VehiclesHeard({*CARS}), now_ms)
        assert core.handle(Tick(), now_ms + 1_400) == []


def test_a_car_that_promised_no_beats_has_until_its_deadline(core: Core) -> None:
    core.handle(VehicleState("car-2", State(True, 2)), 0)  # a new connection, of which no beat has come
    core.handle(beats("car-2", epoch=1), 0)
    assert grants(core.assign(0)) != []
    pass_time(core, 5_000, "car-1", "car-3")
    assert core.counters["vehicle_silent"] == 0


def test_an_idle_car_is_not_judged_by_what_it_did_not_say_before_it_got_work() -> None:
    core = Core()
    for event in (ModelAdded(MODEL), *arrival("car-1"), beats("car-1")):
        core.handle(event, 0)  # type: ignore[arg-type]
    pass_time(core, 60_000)
    core.handle(JobSubmitted(job(rows=10)), 60_000)
    core.assign(60_000)
    pass_time(core, 62_000, since_ms=60_000)
    assert core.counters["vehicle_silent"] == 0
    pass_time(core, 62_100, since_ms=62_000)
    assert core.counters["vehicle_silent"] == 1


def test_after_the_coordinator_slept_cars_have_time_to_be_heard(core: Core) -> None:
    hour_ms = 3_600_000  # long past all deadlines
    assert core.handle(Tick(listened=False), hour_ms) == []
    assert core.handle(Tick(), hour_ms + 1_900) == []
    for number, car in enumerate(CARS):  # what they did meanwhile waited for us
        core.handle(rows_of(car, "j1", Span(number, 10 * number, 10 * number + 10)), hour_ms + 1_950)
    core.handle(Tick(), hour_ms + 2_100)
    assert core.counters["lease_expired"] == core.counters["vehicle_silent"] == 0
    assert core.fleet.column["strikes"].sum() == 0
    assert core.counters["job_done"] == 1


def test_after_that_those_that_are_gone_are_missed(core: Core) -> None:
    core.handle(Tick(listened=False), 10_000)
    pass_time(core, 12_100, "car-1", "car-3", since_ms=10_000)
    assert core.counters["vehicle_silent"] == 1


def test_two_beats_may_be_missed_and_a_fast_promise_is_not_held_to_less_than_a_second() -> None:
    unheard_ms = np.array([999, 1_001, 2_000, 2_001, 10**9], dtype=np.int64)
    beat_ms = np.array([100, 100, 1_000, 1_000, 0], dtype=np.int32)
    assert are_silent(unheard_ms, beat_ms, SilenceLimits()).tolist() == [False, True, False, True, False]
