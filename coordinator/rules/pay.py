"""What rows took and what their owner earns, in whole milliwatt-hours and micro-currency. Pure, and loses no unit.

A result message says what all its rows took together. It is split over its leases so that the parts add up to the
whole, and so does what is paid for them: what is left below a micro-unit counts towards the next part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.model import LeaseRecord, Rest

__all__ = ["PayTerms", "PowerLimits", "paid", "plausible_mwh", "plausible_us", "split"]

_ENERGY_UNIT = 1_000_000  # milliwatt-hours in a kilowatt-hour
_FEE_UNIT = 3_600_000_000  # microseconds in an hour
_US_PER_MS = 1_000
_WATT_US_PER_MWH = 3_600_000


@dataclass(frozen=True, slots=True)
class PayTerms:
    """The fee for an hour of computing, in millionths of the currency."""

    compute_micro_per_h: int = 20_000


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """What a car may claim. `unstated_w` is taken of a car that has not stated yet what its computing draws, and
    `unstated_awake_w` where it does not say what being awake draws (measured on real cars: docs/energy-and-pay.md).

    Measured power is a sample and not the peak, so a car may have used a little more than it stated: `tolerance`.
    `clock_ms` allows for a clock that was set while the car computed.
    """

    unstated_w: float = 60.0
    unstated_awake_w: float = 260.0
    tolerance: float = 1.1
    clock_ms: int = 1_000


def plausible_us(compute_ms: float, elapsed_ms: int, limits: PowerLimits) -> int:
    """Computing time in microseconds, and not more than has passed since the leases were granted."""
    return max(0, min(round(compute_ms * _US_PER_MS), (elapsed_ms + limits.clock_ms) * _US_PER_MS))


def plausible_mwh(energy_mwh: int, compute_us: int, stated_w: float, awake_w: float, limits: PowerLimits) -> int:
    """Energy, and not more than the car's stated power could have used in that time.

    `stated_w` is the most that the car said its computing draws, NaN or 0 when it has not said; `awake_w` what being
    awake draws besides, 0 while it is awake anyway. Cars tell whole milliwatt-hours and carry the rest: one more is
    granted.
    """
    compute_w = stated_w * limits.tolerance if stated_w > 0 else limits.unstated_w
    return min(energy_mwh, int((compute_w + awake_w) * compute_us / _WATT_US_PER_MWH) + 1)


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
