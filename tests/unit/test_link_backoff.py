"""Waiting before another attempt: bounded, growing, and never in step."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fleet_link import backoff_s
from vehicle_agent.link import reconnect_after_s


@given(attempt=st.integers(0, 10_000), seed=st.integers())
def test_the_wait_stays_below_its_ceiling(attempt: int, seed: int) -> None:
    assert 0.0 <= backoff_s(attempt, Random(seed)) <= min(120.0, 2.0 ** min(attempt, 7))


class Highest(Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_ceiling_doubles_from_one_second_to_two_minutes() -> None:
    assert [backoff_s(attempt, Highest()) for attempt in range(9)] == [1, 2, 4, 8, 16, 32, 64, 120, 120]


def test_the_first_ceiling_may_be_another() -> None:
    assert [backoff_s(attempt, Highest(), 4.0) for attempt in range(7)] == [4, 8, 16, 32, 64, 120, 120]


def test_no_more_than_a_third_of_the_vehicles_come_in_any_second_after_a_short_outage() -> None:
    seconds = Counter(int(reconnect_after_s(0, Random(vehicle))) for vehicle in range(2_000))
    assert max(seconds.values()) < 2_000 / 3


def test_vehicles_that_lost_the_broker_together_come_back_spread_out() -> None:
    waits = sorted(backoff_s(6, Random(vehicle)) for vehicle in range(1000))
    assert waits[100] < 16 < 48 < waits[900]
