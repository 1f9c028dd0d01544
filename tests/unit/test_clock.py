"""The coordinator's clock: it never goes back, whatever is done to the machine's."""

import pytest

from coordinator.clock import SteadyClock

S_NS = 1_000_000_000
START_S = 1_700_000_000


class Machine:
    """A wall clock that can be set, and one that only counts; both in seconds."""

    def __init__(self) -> None:
        self.wall_s = float(START_S)
        self.passed_s = 7.0

    def run(self, seconds: float) -> None:
        self.wall_s += seconds
        self.passed_s += seconds

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: int(self.wall_s * S_NS), lambda: int(self.passed_s * S_NS))


def test_it_tells_the_machines_time_and_follows_it_forward_at_once() -> None:
    machine = Machine()
    clock = machine.clock()
    told = [clock.now_ms()]
    machine.run(5)
    told.append(clock.now_ms())
    machine.wall_s += 3600  # set forward, or the machine slept
    told.append(clock.now_ms())
    assert [each - START_S * 1000 for each in told] == [0, 5_000, 3_605_000]


def test_set_back_it_goes_on_at_half_speed_until_the_machine_has_caught_up() -> None:
    machine = Machine()
    clock = machine.clock()
    clock.now_ms()
    machine.wall_s -= 10
    told = []
    for _ in range(25):
        machine.run(1)
        told.append(clock.now_ms() - START_S * 1000)
    assert told == [500 * second for second in range(1, 21)] + [11_000, 12_000, 13_000, 14_000, 15_000]
    assert machine.wall_s == START_S + 15


def test_it_says_once_how_far_the_machines_clock_was_set_back(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock()
    for step_s in (0.0, -0.5, -60.0, -0.1):
        machine.wall_s += step_s
        machine.run(0.1)
        clock.now_ms()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "set back by 60 s" in messages[0]
