"""What rows took and what their owner earns, in whole milliwatt-hours and micro-currency. Pure, and loses no unit.

A result message says what all its rows took together. It is split over its leases so that the parts add up to the
whole, and so does what is paid for them: what is left below a micro-unit counts towards the next part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from coordinator.model import LeaseRecord, Rest

__all__ = ["PayTerms", "PowerLimits", "Worked", "most_mwh", "most_us", "paid", "plausible_us", "split", "with_claim"]

_ENERGY_UNIT = 1_000_000  # milliwatt-hours in a kilowatt-hour
_FEE_UNIT = 3_600_000_000  # microseconds in an hour
_US_PER_MS = 1_000
_WATT_US_PER_MWH = 3_600_000
_MOST_KEPT = 8

Worked = tuple[tuple[int, int], ...]
"""What a car has been believed: when leases were granted, in order, and the microseconds it computed under them."""


@dataclass(frozen=True, slots=True)
class PayTerms:
    """The fee for an hour of computing, in millionths of the currency."""

    compute_micro_per_h: int = 20_000


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """What a car may claim. `unstated_w` is taken of a car that has not stated yet what its computing draws, and
    `unstated_awake_w` where it does not say what being awake draws (measured on real cars: docs/energy-and-pay.md).

    Measured power is a sample and not the peak, so a car may have used a little more than it stated: `tolerance`.
    `clock_ms` allows for a clock that was set while the car computed. Cars tell whole milliwatt-hours and carry the
    rest over to their next message, which may come before this one: `carried_mwh`.
    """

    unstated_w: float = 60.0
    unstated_awake_w: float = 260.0
    tolerance: float = 1.1
    clock_ms: int = 1_000
    carried_mwh: int = 8


def plausible_us(compute_ms: float, most: int) -> int:
    """Computing time in microseconds, as far as it can be true."""
    return max(0, min(round(compute_ms * _US_PER_MS), most))


def most_us(granted_ms: int, now_ms: int, worked: Worked, limits: PowerLimits) -> int:
    """How long a car can have computed, by now, under a lease granted then, after all that it is believed already.

    A car computes one thing at a time. So what it was granted since some moment, and has sent by now, can't have taken
    longer than the time between: for the moment of this grant, and for that of every one before it. An honest car is
    never cut by that, however late and in whichever order its results come.
    """
    most = (now_ms + limits.clock_ms - granted_ms) * _US_PER_MS
    since_us = 0
    for since_ms, us in reversed(worked):
        since_us += us
        if since_ms <= granted_ms:
            most = min(most, (now_ms + limits.clock_ms - since_ms) * _US_PER_MS - since_us)
        else:
            most -= us
    return most


def with_claim(worked: Worked, granted_ms: int, us: int) -> Worked:
    """The same with more believed.

    Two grants become one, the earlier, when the car was busy all the time between, which changes nothing, or when they
    are too many: then those with the least idle time between, which is all that this may give away.
    """
    kept = sorted([*worked, (granted_ms, us)])
    while len(kept) > 1:
        idle_us = [(after[0] - before[0]) * _US_PER_MS - before[1] for before, after in pairwise(kept)]
        place = min(range(len(idle_us)), key=idle_us.__getitem__)
        if idle_us[place] > 0 and len(kept) <= _MOST_KEPT:
            break
        kept[place : place + 2] = [(kept[place][0], kept[place][1] + kept[place + 1][1])]
    return tuple(kept)


def most_mwh(compute_us: int, stated_w: float, awake_w: float, limits: PowerLimits) -> float:
    """The most energy that the car's stated power could have used in that time.

    `stated_w` is the most that the car said its computing draws, NaN or 0 when it has not said; `awake_w` what being
    awake draws besides, 0 while it is awake anyway.
    """
    compute_w = stated_w * limits.tolerance if stated_w > 0 else limits.unstated_w
    return (compute_w + awake_w) * compute_us / _WATT_US_PER_MWH


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Parts of `total` in proportion to `weights`, which are not all zero; they add up to it exactly."""
    whole = sum(weights)
    parts = []
    weight_before = told = 0
    for weight in weights:
        weight_before += weight
        due = total * weight_before // whole
        parts.append(due - told)
        told = due
    return parts


def paid(energy_mwh: int, compute_us: int, lease: LeaseRecord, rest: Rest) -> tuple[int, int, Rest]:
    """Energy refunded and fee in micro-units, by what the lease promised, and what is left for the next part."""
    energy, energy_rest = divmod(rest.energy + energy_mwh * lease.energy_micro_per_kwh, _ENERGY_UNIT)
    fee, fee_rest = divmod(rest.fee + compute_us * lease.pay_micro_per_h, _FEE_UNIT)
    return energy, fee, Rest(energy_rest, fee_rest)
