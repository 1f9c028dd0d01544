"""Whose turn it is, which cars are the best for it, and which late lease is worth a copy. See docs/scheduling.md.

Pure. Times are in milliseconds, virtual time in milliseconds of work for each unit of weight.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet_view import FleetView
from coordinator.rules.quarantine import QuarantineLimits, reliability

__all__ = [
    "CarWeights",
    "SchedulingLimits",
    "car_order",
    "copy_gains",
    "share_cap",
    "time_left_ms",
    "turn_key",
    "weight",
]

# Classes of turns, the first first.
_STARVES, _IN_DANGER, _FAIR = range(3)
_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class CarWeights:
    """What speaks for a car; the weights' proportions count. Warm goes before all of them."""

    charging: float = 3.0
    cheap: float = 2.0
    reliable: float = 3.0
    stays: float = 1.0
    idle: float = 2.0
    enough_stay_ms: float = 3_600_000.0


@dataclass(frozen=True, slots=True)
class SchedulingLimits:
    """`doubling` steps of priority double a job's share. A job that got nothing for `patience_ms` goes first.

    At most `copied_share` of a job's rows are given to a second car, and only where that should save `least_gain_ms`
    and take at most `copy_factor` of the time that the late car still needs. A model that a car does not have yet costs
    it `cold_ms`. A pass ends after `most_leases`, so that results never wait long for it; the next one goes on.
    """

    most_leases: int = 2_000
    doubling: float = 10.0
    patience_ms: int = 300_000
    copied_share: float = 0.05
    least_gain_ms: float = 500.0
    copy_factor: float = 0.5
    cold_ms: float = 2_000.0
    copies_every_ms: int = 250
    cars: CarWeights = field(default_factory=CarWeights)


def weight(priority: int, limits: SchedulingLimits) -> float:
    """The part of the fleet that a job gets, beside the weights of the others."""
    return float(2.0 ** (priority / limits.doubling))


def turn_key(
    *,
    virtual_ms: float,
    unserved_ms: int,
    needs_ms: float | None,
    share: float,
    left_ms: float | None,
    limits: SchedulingLimits,
) -> tuple[int, float]:
    """Sort key of a job that waits for work to be given: the least goes first.

    A job that got nothing for too long comes first, the longest waiting before the others. Then come those that would
    miss their deadline with their fair share alone, the least slack first: `needs_ms` is what the rest takes with the
    whole fleet, `left_ms` the time to the deadline. One that could not make it with twice the fleet is not favoured.
    All others go by virtual time: the work that they were given divided by their weight.
    """
    if unserved_ms >= limits.patience_ms:
        return _STARVES, -float(unserved_ms)
    if left_ms is not None and needs_ms is not None and needs_ms <= 2 * left_ms and needs_ms / share > left_ms:
        return _IN_DANGER, left_ms - needs_ms
    return _FAIR, virtual_ms


def share_cap(rows: int, vehicle_share: float) -> int:
    """How many rows of a job one car may be given; at least one."""
    return rows if vehicle_share >= 1 else max(1, int(rows * vehicle_share))


def car_order(
    fleet: FleetView, rows: NDArray[np.intp], chunk_ms: float, weights: CarWeights, quarantine: QuarantineLimits
) -> NDArray[np.intp]:
    """These cars with the best first: charging, cheap, reliable, likely to stay, idle; equal ones as they stood."""
    if len(rows) < 2:
        return rows
    points = weights.charging * (fleet.column["charging"][rows] == 1)
    points = points + weights.cheap * _cheap(fleet.column["energy_micro_per_kwh"][rows])
    kept, ended = fleet.column["leases_kept"][rows], fleet.column["leases_ended"][rows]
    points += weights.reliable * reliability(kept, ended, quarantine)
    stay_ms = np.nan_to_num(fleet.column["stay_ms"][rows], nan=weights.enough_stay_ms / 2)
    points += weights.stays * np.minimum(stay_ms / weights.enough_stay_ms, 1.0)
    points -= weights.idle * np.minimum(fleet.column["backlog_ms"][rows] / chunk_ms, 1.0)
    whole = weights.charging + weights.cheap + weights.reliable + weights.stays + weights.idle
    # Small whole numbers are sorted by radix: a hundred thousand cars in a millisecond.
    return rows[np.argsort((points * (-_POINTS / whole)).astype(np.int16), kind="stable")]


def _cheap(price: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1 for the lowest price to 0 for the highest; 0 where it is not known, 1 where all are the same."""
    known = np.isfinite(price)
    if not known.any():
        return np.zeros(len(price))
    low, high = price[known].min(), price[known].max()
    return np.nan_to_num((high - price) / (high - low), nan=0.0) if high > low else known.astype(np.float64)


def time_left_ms(*, granted_ms: int, expected_ms: float, rows: int, missing: int, now_ms: int) -> float:
    """How long a lease will probably take still.

    Until the time at which it was expected, that is to be believed; after it, the rest goes on at the rate so far, and
    one that brought nothing takes as long again as it has taken already.
    """
    if now_ms <= expected_ms:
        return expected_ms - now_ms
    elapsed_ms = float(now_ms - granted_ms)
    return elapsed_ms * missing / (rows - missing) if missing < rows else elapsed_ms


def copy_gains(*, copy_ms: float, left_ms: float, limits: SchedulingLimits) -> bool:
    """Whether a second car would bring the rows so much earlier that computing them twice is worth it."""
    return copy_ms <= limits.copy_factor * left_ms and left_ms - copy_ms >= limits.least_gain_ms
