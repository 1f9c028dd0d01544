"""What an owner earns, in integer micro-currency. Pure, and telescoping: parts add up to the whole exactly."""

from dataclasses import dataclass

__all__ = ["PayTerms", "pay_micro"]


@dataclass(frozen=True, slots=True)
class PayTerms:
    """The price of energy that is refunded, and the fee for computing, in millionths of the currency."""

    energy_micro_per_kwh: int = 250_000
    compute_micro_per_h: int = 20_000


def pay_micro(energy_mwh: int, compute_ms: float, terms: PayTerms) -> int:
    """Pay for `energy_mwh` milliwatt-hours and `compute_ms` of computing, rounded down to a micro-unit.

    Ask it for running totals and pay the difference: rounding each part would lose most of many small ones.
    """
    energy = energy_mwh * terms.energy_micro_per_kwh // 1_000_000
    return energy + int(compute_ms) * terms.compute_micro_per_h // 3_600_000
