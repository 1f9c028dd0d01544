"""The demo's story: what is told of cars that leave, come, are killed, and how rows and rates are counted."""

import msgspec
import pytest
from rich.console import Console

from fleet_wire.api import JobView, VehicleView
from idlewheel.demo.screen import DemoScreen, Headline
from idlewheel.demo.story import Answer, CarState, Event, Story

CAR = VehicleView(
    id="car-01",
    online=True,
    eligible=True,
    reason=None,
    plugged=True,
    charging=False,
    charge_percent=100.0,
    leases=2,
    rows_per_s=80.0,
    rows_done=7,
    energy_mwh=1,
    pay_micro=1,
    last_seen_ms=1,
)
JOB = JobView(
    id="j",
    name="",
    model="m",
    state="running",
    rows=100,
    rows_done=0,
    rows_leased=0,
    created_ms=0,
    ended_ms=None,
    error=None,
    rows_duplicate=0,
    rows_released_again=0,
    compute_ms=0.0,
    energy_mwh=0,
    pay_micro=0,
    vehicles=1,
)


def car(**changes: object) -> VehicleView:
    return msgspec.structs.replace(CAR, **changes)


def job(**changes: object) -> JobView:
    return msgspec.structs.replace(JOB, **changes)


def told(before: VehicleView, after: VehicleView) -> tuple[list[Event], int]:
    story = Story(100)
    story.poll(0.0, [before], None)
    return story.poll(1.0, [after], None), story.departures


def test_a_car_that_leaves_with_work_is_a_departure() -> None:
    events, departures = told(car(leases=2), car(plugged=False, eligible=False, leases=0))
    assert (events, departures) == ([Event(1.0, "departure", "car-01 drove off, held 2 chunks")], 1)


def test_a_car_that_leaves_without_work_is_none() -> None:
    events, departures = told(car(leases=0), car(plugged=False, eligible=False, leases=0))
    assert (events, departures) == ([Event(1.0, "left", "car-01 drove off, held nothing")], 0)


def test_a_car_that_comes_back_and_one_that_goes_offline_are_told() -> None:
    assert told(car(plugged=False), car()) == ([Event(1.0, "came", "car-01 came back and plugged in")], 0)
    assert told(car(), car(online=False)) == ([Event(1.0, "left", "car-01 went offline")], 0)


def test_nothing_is_told_of_a_car_seen_for_the_first_time_or_unchanged() -> None:
    story = Story(100)
    assert story.poll(0.0, [car(plugged=False)], None) == []
    assert told(car(), car(rows_done=9)) == ([], 0)


def test_a_killed_car_is_told_once() -> None:
    story = Story(100)
    story.poll(0.0, [car()], None)
    assert story.was_killed(0.5, "car-01", 1) == Event(0.5, "killed", "car-01 killed (SIGKILL), held 1 chunk")
    assert story.poll(1.0, [car(online=False, leases=0)], None) == []
    assert (story.killed, story.departures, story.cars["car-01"].state) == (["car-01"], 0, CarState.KILLED)


def test_rows_leased_again_are_told_as_they_grow() -> None:
    story = Story(100)
    events = [story.poll(at_s, [], job(rows_released_again=rows)) for at_s, rows in ((1.0, 0), (2.0, 12), (3.0, 13))]
    assert events == [
        [],
        [Event(2.0, "released", "12 rows leased again")],
        [Event(3.0, "released", "1 row leased again")],
    ]


@pytest.mark.parametrize(
    ("view", "state"),
    [
        (car(), CarState.COMPUTING),
        (car(leases=0), CarState.READY),
        (car(leases=0, eligible=False), CarState.WAITING),
        (car(plugged=False), CarState.AWAY),
        (car(plugged=None), CarState.AWAY),
        (car(online=False), CarState.OFFLINE),
    ],
)
def test_what_a_car_does(view: VehicleView, state: CarState) -> None:
    story = Story(100)
    story.poll(0.0, [view], None)
    assert story.cars["car-01"].state is state


def test_rates_are_even_between_two_polls() -> None:
    story = Story(100)
    for at_s, rows in ((2.0, 0), (4.0, 40), (8.0, 60)):
        story.poll(at_s, [], job(rows_done=rows))
    assert story.rates(4) == [0.0, 20.0, 5.0, 5.0]
    assert story.rows_per_s() == 5.0
    assert (Story(1).rates(3), Story(1).rows_per_s()) == ([0.0, 0.0, 0.0], 0.0)


@pytest.mark.parametrize("cars", [0, 3, 24, 300])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 12)])
def test_the_screen_fits_the_terminal(cars: int, width: int, height: int) -> None:
    story = Story(100)
    views = [car(id=f"car-{number:02}") for number in range(cars)]
    story.poll(0.0, views, job())
    story.poll(1.0, [msgspec.structs.replace(view, plugged=False) for view in views], job(rows_done=50))
    story.rows_came(Answer(row, "a/long/path/" * 20, "python") for row in range(60))
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    screen = DemoScreen(Headline("title", "Tue 06:15", "computing"), story, lambda row: [])
    lines = console.render_lines(screen, console.options.update(height=None), pad=False)
    assert len(lines) <= max(height, 16)
    assert all(sum(segment.cell_length for segment in line) <= width for line in lines)
