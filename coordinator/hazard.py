"""How often a fleet's cars are unplugged and plugged in, as rates on a grid of the local week. Counts, and fits rates.

The grid has steps of a quarter of an hour, and for plugged cars bins of the time since they were plugged in. Never
knows a single car, a clock or a timezone: times are local milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ELAPSED_BINS",
    "MINUTE_MS",
    "QUARTER_MINUTES",
    "QUARTER_MS",
    "WEEK_QUARTERS",
    "FleetHazard",
    "HazardTerms",
    "elapsed_bin",
    "week_quarter",
]

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]

MINUTE_MS = 60_000
QUARTER_MINUTES = 15
QUARTER_MS = QUARTER_MINUTES * MINUTE_MS
_DAY_QUARTERS = 96
WEEK_QUARTERS = 7 * _DAY_QUARTERS
_WORKING_DAYS = 5
_MONDAY = 3 * _DAY_QUARTERS  # the first of January 1970 was a Thursday
# Quarters since the car was plugged in at which the next bin begins: 15 min, 30 min, 1 h … 16 h, 20 h, 24 h, 36 h.
_BIN_STARTS = np.array([1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 144])
ELAPSED_BINS = len(_BIN_STARTS) + 1
_BIN_OF_QUARTER = np.searchsorted(_BIN_STARTS, np.arange(_BIN_STARTS[-1] + 1), side="right")
_CELLS = WEEK_QUARTERS * ELAPSED_BINS
_BLOCK_QUARTERS = 16
_BLOCKS = 2 * _DAY_QUARTERS // _BLOCK_QUARTERS
_BLOCK_OF_QUARTER = (np.arange(WEEK_QUARTERS) >= _WORKING_DAYS * _DAY_QUARTERS) * (_BLOCKS // 2) + (
    np.arange(WEEK_QUARTERS) % _DAY_QUARTERS // _BLOCK_QUARTERS
)


@dataclass(frozen=True, slots=True)
class HazardTerms:
    """Prior rates, how many events they weigh as much as, and how fast counts are forgotten.

    The prior is the mean of 223 regular users of the Norwegian charging sessions (docs/availability.md): 7.7 % are
    unplugged within an hour, and 26 % of all hours are spent plugged in.
    """

    leave_per_minute: float = 0.00133
    come_per_minute: float = 0.00047
    most_per_minute: float = 0.2
    weight: float = 20.0
    half_life_days: float = 120.0
    recent_half_life_days: float = 7.0


def week_quarter(local_ms: NDArray[np.int64]) -> Places:
    """Quarter of the local week, 0 on Monday at 00:00."""
    return (local_ms // QUARTER_MS + _MONDAY) % WEEK_QUARTERS


def elapsed_bin(elapsed_ms: NDArray[np.int64]) -> Places:
    """Bin of the time since a car was plugged in."""
    return _BIN_OF_QUARTER[np.clip(elapsed_ms // QUARTER_MS, 0, _BIN_STARTS[-1])]


def _grid() -> Numbers:
    return np.zeros((WEEK_QUARTERS, ELAPSED_BINS))


@dataclass(slots=True)
class FleetHazard:
    """Counts of a fleet, and the rates a minute that follow from them since the last `fit`.

    `leave[quarter, bin]` is the rate of being unplugged, `steady` the same without what is special about these days;
    `leave_by_quarter` the same whatever the time plugged, `come[quarter]` the rate of being plugged in while away.
    """

    terms: HazardTerms = field(default_factory=HazardTerms)
    minutes: Numbers = field(default_factory=_grid)
    unplugged: Numbers = field(default_factory=_grid)
    away_minutes: Numbers = field(default_factory=lambda: np.zeros(WEEK_QUARTERS))
    plugged_in: Numbers = field(default_factory=lambda: np.zeros(WEEK_QUARTERS))
    recent_expected: Numbers = field(default_factory=lambda: np.zeros(_BLOCKS))
    recent_unplugged: Numbers = field(default_factory=lambda: np.zeros(_BLOCKS))
    steady: Numbers = field(init=False)
    leave: Numbers = field(init=False)
    leave_by_quarter: Numbers = field(init=False)
    come: Numbers = field(init=False)

    def __post_init__(self) -> None:
        self.fit()

    def stay_plugged(self, quarter: Places, bins: Places, minutes: Numbers) -> None:
        """Cars were plugged in for these minutes, in these cells."""
        cells = quarter * ELAPSED_BINS + bins
        self.minutes += np.bincount(cells, minutes, _CELLS).reshape(self.minutes.shape)
        expected = self.steady[quarter, bins] * minutes
        self.recent_expected += np.bincount(_BLOCK_OF_QUARTER[quarter], expected, _BLOCKS)

    def leave_now(self, quarter: Places, bins: Places) -> None:
        """Cars were unplugged in these cells."""
        cells = quarter * ELAPSED_BINS + bins
        self.unplugged += np.bincount(cells, minlength=_CELLS).reshape(self.unplugged.shape)
        self.recent_unplugged += np.bincount(_BLOCK_OF_QUARTER[quarter], minlength=_BLOCKS)

    def stay_away(self, quarter: Places, minutes: Numbers) -> None:
        """Cars were not plugged in for these minutes."""
        self.away_minutes += np.bincount(quarter, minutes, WEEK_QUARTERS)

    def come_now(self, quarter: Places) -> None:
        """Cars were plugged in."""
        self.plugged_in += np.bincount(quarter, minlength=WEEK_QUARTERS)

    def forget(self, days: float) -> None:
        """Let time pass: what is old counts less."""
        for counts in (self.minutes, self.unplugged, self.away_minutes, self.plugged_in):
            np.multiply(counts, 0.5 ** (days / self.terms.half_life_days), out=counts)
        for counts in (self.recent_expected, self.recent_unplugged):
            np.multiply(counts, 0.5 ** (days / self.terms.recent_half_life_days), out=counts)

    def fit(self) -> None:
        """Work the rates out anew, from the coarse to the fine; each level is shrunk to the one above it."""
        weight = self.terms.weight
        rates = np.full_like(self.minutes, self.terms.leave_per_minute)

        def correct(
            pool: Callable[[Numbers], NDArray[Any]], spread: Callable[[Numbers], NDArray[Any]], weight: float
        ) -> None:
            seen, expected = pool(self.unplugged), pool(self.minutes * rates)
            rates[:] = rates * spread((seen + weight) / (expected + weight))

        correct(lambda counts: counts.sum(keepdims=True), lambda factor: factor, 1.0)
        correct(_by_time_of_day, _over_week, weight)
        correct(lambda counts: counts.sum(axis=0), lambda factor: factor, weight)
        correct(_by_time_of_day, _over_week, weight)  # the bins have taken their share of what the times had
        correct(_by_hour_and_bin, _over_week_and_bins, weight)
        correct(_by_hour_of_week, lambda factor: np.repeat(factor, 4)[:, None], weight)
        self.steady = np.minimum(rates, self.terms.most_per_minute)
        recent = (self.recent_unplugged + weight) / (self.recent_expected + weight)
        self.leave = np.minimum(rates * recent[_BLOCK_OF_QUARTER][:, None], self.terms.most_per_minute)
        expected, plugged = ((self.minutes * self.leave).sum(axis=1), self.minutes.sum(axis=1))
        # Where nobody was ever plugged in, as if each bin had been for a minute.
        self.leave_by_quarter = (expected + self.leave.sum(axis=1)) / (plugged + ELAPSED_BINS)
        self._fit_come()

    def _fit_come(self) -> None:
        weight, prior = self.terms.weight, self.terms.come_per_minute
        rate = (self.plugged_in.sum() + 1.0) / (self.away_minutes.sum() + 1.0 / prior)
        seen, away = _smoothed(self.plugged_in), _smoothed(self.away_minutes)
        self.come = np.minimum((seen + weight) / (away + weight / rate), self.terms.most_per_minute)


def _smoothed(week: Numbers) -> Numbers:
    smooth: Numbers = np.sum([np.roll(week, shift) for shift in range(-2, 3)], axis=0)
    return smooth


def _two_days(counts: Numbers) -> Numbers:
    """A working day and a day of the weekend; shape [2, times of day, …]."""
    days = counts.reshape(7, -1, *counts.shape[1:])
    return np.stack([days[:_WORKING_DAYS].sum(axis=0), days[_WORKING_DAYS:].sum(axis=0)])


def _seven_days(factor: Numbers) -> Numbers:
    days: Numbers = np.repeat(factor, (_WORKING_DAYS, 7 - _WORKING_DAYS), axis=0)
    return days.reshape(-1, *factor.shape[2:])


def _by_time_of_day(counts: Numbers) -> Numbers:
    """Quarters of a working day and of the weekend, with their neighbours at a third and two thirds."""
    days = _two_days(counts.sum(axis=1))
    pooled: Numbers = np.sum([(1 - abs(shift) / 3) * np.roll(days, shift, axis=1) for shift in range(-2, 3)], axis=0)
    return pooled


def _over_week(factor: Numbers) -> Numbers:
    return _seven_days(factor)[:, None]


def _by_hour_and_bin(counts: Numbers) -> Numbers:
    return _with_half_of_neighbours(_two_days(counts.reshape(-1, 4, ELAPSED_BINS).sum(axis=1)))


def _over_week_and_bins(factor: Numbers) -> Numbers:
    spread: Numbers = np.repeat(_seven_days(factor), 4, axis=0)
    return spread


def _by_hour_of_week(counts: Numbers) -> Numbers:
    week: Numbers = _with_half_of_neighbours(counts.sum(axis=1).reshape(1, -1, 4).sum(axis=2))[0]
    return week


def _with_half_of_neighbours(hours: Numbers) -> Numbers:
    pooled: Numbers = hours + 0.5 * (np.roll(hours, 1, axis=1) + np.roll(hours, -1, axis=1))
    return pooled
